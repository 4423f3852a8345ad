"""What the API may ask of a node about images: take an upload, fetch one, remove one."""

import secrets
import threading
from collections.abc import Mapping
from datetime import timedelta

from pvccommon.database import Database
from pvccommon.errors import Busy
from pvccommon.models import Json
from pvccommon.storage import get_pool
from pvccommon.storage.pool import StoragePool
from pvccommon.transfer import Channel, Receiver
from pvcnoded.command import Verbs
from pvcnoded.imports.fetch import fetch_image
from pvcnoded.imports.image_rows import UPLOAD, ImportRequest, remove_image
from pvcnoded.imports.imports import Imports
from pvcnoded.imports.session import UploadSession, no_upload
from pvcnoded.imports.taking_over import taken_over
from pvcnoded.imports.volume_content import volume_request
from pvcnoded.lease import Owner
from pvcnoded.transfers import Transfers
from pvcnoded.volume_commands import describe_volume

TOKEN_BYTES = 16
END_S = 60.0


class ImageCommands:
    """Images of this node's pools. Uploads in chunks live here from one connection to the next."""

    def __init__(
        self,
        database: Database,
        pools: Mapping[str, StoragePool],
        imports: Imports,
        transfers: Transfers,
        *,
        dead_after: timedelta,
    ) -> None:
        self._database = database
        self._pools = pools
        self._imports = imports
        self._transfers = transfers
        self._dead_after = dead_after
        self._sessions: dict[int, UploadSession] = {}
        self._tidying = threading.Lock()

    def verbs(self) -> Verbs:
        return {
            "image.upload": self.upload,
            "image.fill": self.fill,
            "image.open": self.open,
            "image.append": self.append,
            "image.state": self.state,
            "image.import": self.fetch,
        }

    def slow_verbs(self) -> Verbs:
        """What waits for an import to end, or deletes whole volumes."""
        return {"image.end": self.end, "image.remove": self.remove}

    def upload(self, arguments: Json) -> Json:
        """{pool, name, kind, format, size_bytes, sha256, system} -> {offer}: the file in one transfer.

        The transfer's result is {image_id}, when the image is ready.
        """
        request = import_request(arguments)

        def serve(channel: Channel) -> Json:
            begun = self._imports.begin(arguments["pool"], request, keep_failed=False)
            begun.run(Receiver(channel))
            return {"image_id": begun.image_id}

        return {"offer": self._transfers.offer(f"upload image {request.name}", serve)}

    def fill(self, arguments: Json) -> Json:
        """{pool, volume, format, size_bytes, overwrite} -> {offer}: a file that becomes a volume's content.

        The transfer's result is {volume}. See `volume_content`.
        """
        pool, request = get_pool(self._pools, arguments["pool"]), volume_request(arguments)

        def serve(channel: Channel) -> Json:
            self._imports.begin(pool.name, request, keep_failed=False).run(Receiver(channel))
            return {"volume": describe_volume(pool, pool.stat_volume(request.volume))}

        return {"offer": self._transfers.offer(request.what, serve)}

    def open(self, arguments: Json) -> Json:
        """The same arguments -> {image_id, token}: the file comes in chunks."""
        self._tidy()
        token = secrets.token_hex(TOKEN_BYTES)
        request = import_request(arguments)
        begun = self._imports.begin(arguments["pool"], request, keep_failed=True, token=token)
        session = UploadSession(begun, token, self._imports.settings.upload_idle_s)
        self._sessions[begun.image_id] = session
        return {"image_id": begun.image_id, "token": token}

    def append(self, arguments: Json) -> Json:
        """{image_id, token, offset, checksum: null or [algorithm, hexadecimal digest]} -> {offer}.

        Or {refused: "offset", offset}, or {failed: error}, as the transfer's result, which is {offset} of the
        next chunk when all went well.
        """
        session, offset = self._session(arguments), int(arguments["offset"])
        refusal = session.check(offset)
        if refusal is not None:
            return refusal
        given = arguments["checksum"]
        checksum = (str(given[0]), str(given[1])) if given else None
        offer = self._transfers.offer(session.what, lambda channel: session.take(channel, offset, checksum))
        return {"offer": offer}

    def state(self, arguments: Json) -> Json:
        """{image_id, token} -> {offset, size_bytes}."""
        return self._session(arguments).state()

    def fetch(self, arguments: Json) -> Json:
        """{pool, name, kind, format, url, sha256, system} -> {image_id}; the rest is in the image's row."""
        return {"image_id": fetch_image(self._imports, arguments["pool"], import_request(arguments))}

    def end(self, arguments: Json) -> Json:
        """{image_id} -> {}: end the import of an image; nothing of it is left. Safe to repeat."""
        image_id = int(arguments["image_id"])
        begun = self._imports.find(image_id)
        if begun is None:
            return {}
        begun.end()
        if not begun.ended.wait(END_S):
            raise Busy(f"end the import of image {begun.request.name}", "it has not ended yet", "try again")
        self._sessions.pop(image_id, None)
        return {}

    def remove(self, arguments: Json) -> Json:
        """{pool, image_id, with_parts} -> {}: see `remove_image`. One that is imported is ended.

        That of a node which is gone is taken over, see there.
        """
        self.end(arguments)
        pool, image_id = get_pool(self._pools, arguments["pool"]), int(arguments["image_id"])
        me, with_parts = Owner.parse(self._imports.rows.owner), bool(arguments["with_parts"])
        with taken_over(self._database, pool, image_id, me, self._dead_after):
            remove_image(self._database, pool, image_id, with_parts=with_parts)
        return {}

    def _session(self, arguments: Json) -> UploadSession:
        image_id = int(arguments["image_id"])
        session = self._sessions.get(image_id)
        if session is None:
            raise no_upload(image_id)
        session.check_token(str(arguments["token"]))
        return session

    def _tidy(self) -> None:
        """Forget what is over: the rows tell what became of it."""
        with self._tidying:
            for image_id, session in list(self._sessions.items()):
                if session.is_over:
                    del self._sessions[image_id]


def import_request(arguments: Json) -> ImportRequest:
    return ImportRequest(
        name=arguments["name"],
        kind=arguments["kind"],
        format=arguments["format"],
        size_bytes=int(arguments.get("size_bytes") or 0),
        sha256=arguments.get("sha256"),
        system=arguments.get("system"),
        source=arguments.get("url") or UPLOAD,
    )
