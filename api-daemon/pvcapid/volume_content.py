"""The content of volumes: from a caller's request to a node, and back, through memory only."""

import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, request

from pvcapid.endpoint import endpoint
from pvcapid.fields import Choice, Whole, documented
from pvcapid.late_body import LATE_BODY
from pvcapid.parameters import Given
from pvcapid.services import services
from pvcapid.sizes import MOST_BYTES, size_text
from pvcapid.storage_nodes import Place, place_for_new, place_of_volume
from pvcapid.uploaded_file import UploadedFile
from pvcapid.volume_users import require_free_name, require_unused
from pvcapid.volumes import OnNode, find_place, require_names
from pvccommon.errors import NotFound, PvcError, WrongInput
from pvccommon.transfer import IDLE_S, Offer, Receiver, Sender, connect

blueprint = Blueprint("volume_content", __name__)
OCTETS = "application/octet-stream"
RAW = "raw"
# The contract's names of formats, and ours.
FORMATS = {RAW: RAW, "vmdk": "vmdk", "qcow2": "qcow2", "vdi": "vdi", "vpc": "vhd"}


class UploadParameters(OnNode):
    image_format = Choice((*FORMATS, "qed"), load_default=RAW, metadata=documented("never guessed"))
    file_size = Whole(
        1,
        MOST_BYTES,
        metadata=documented("bytes of the file; needed to make a volume that does not exist yet"),
    )


@blueprint.post("/storage/ceph/volume/<pool>/<volume>/upload")
@endpoint(UploadParameters, lenient=True, absent=400, upload=True)
def upload_volume(given: Given, pool: str, volume: str) -> str:
    """Make a volume from a file, or overwrite the content of one that exists."""
    what = f"upload volume {pool}/{volume}"
    with patient_with_caller():
        image_format = FORMATS.get(given.get("image_format", RAW))
        if image_format is None:
            why = f"{given['image_format']!r} is not supported; supported: {', '.join(FORMATS)}"
            given.add("image_format", f"{why} (qemu-img convert makes one of the other)")
        require_names(given, what, volume=volume)
        place, exists = _find(pool, volume, given.get("node"), what)
        if exists:
            require_unused(place, volume, what)
        elif "file_size" not in given:
            raise NotFound(what, "there is no such volume", "give file_size, and it is made")
        else:
            require_free_name(place, volume, what)
        file = UploadedFile(request)
        size_bytes = given.get("file_size", file.size_bytes)
        if not size_bytes:
            raise WrongInput(what, "file_size must be given for a body of unknown length, or without content")
        try:
            arguments = {"volume": volume, "size_bytes": size_bytes, "overwrite": exists}
            if image_format == RAW:
                offer = place.ask("volume.upload", arguments)["offer"]
            else:
                offer = place.ask("image.fill", {**arguments, "format": image_format})["offer"]
            result = send_file(offer, file, size_bytes, what)
        except PvcError as exc:
            if exists:
                exc.hint = f"if it had begun, the volume's content is mixed now: upload again. {exc.hint}"
            raise
    verb = "Overwrote" if exists else "Created"
    return f'{verb} volume "{pool}/{volume}" of {size_text(result["volume"]["size_bytes"])}.'


@blueprint.get("/storage/ceph/volume/<pool>/<volume>/download")
@endpoint(OnNode, answer=None, lenient=True, download=True)
def download_volume(given: Given, pool: str, volume: str) -> Response:
    """Get the raw content of a volume."""
    place = find_place(given, pool, volume, "download")
    what = f"download volume {pool}/{volume}"
    with contextlib.ExitStack() as undo:
        undo.enter_context(services().long_requests.transfer(what))
        answer = place.look("volume.download", {"volume": volume})
        channel = undo.enter_context(connect(Offer(**answer["offer"]), what))
        receiver = Receiver(channel, channel.receive())  # raises what the node refuses
        limit_idle_time()
        response = Response(receiver.pieces(), mimetype=OCTETS)
        response.content_length = answer["size_bytes"]
        response.call_on_close(undo.pop_all().close)
    return response


def _find(pool: str, volume: str, node: str | None, what: str) -> tuple[Place, bool]:
    """Where a volume is or will be, and whether it is there."""
    try:
        place = place_of_volume(pool, volume, node, what)
    except NotFound as exc:
        if exc.what != what:  # the pool, or the node
            raise
        return place_for_new(pool, node, what), False
    return place, place.ask("volume.find", {"volume": volume})["found"] is not None


def send_file(offer: Mapping[str, Any], file: UploadedFile, size_bytes: int, what: str) -> Any:
    """Send the file of a request to the node that made the offer; the node's result."""
    with connect(Offer(**offer), what) as channel:
        sender = Sender(channel)
        for piece in file.pieces():
            if sender.size_bytes + len(piece) > size_bytes:
                raise WrongInput(what, f"the file has more than the {size_bytes} bytes announced")
            sender.write(piece)
        # The node counts, too; should it have refused all of it meanwhile, that is the better reason.
        sender.finish()
        return channel.receive_answer()


@contextlib.contextmanager
def patient_with_caller() -> Iterator[None]:
    """A request that brings a file: one of those that may hold a thread for long. Raises Busy."""
    with services().long_requests.transfer(f"{request.method} {request.path}"):
        limit_idle_time()
        yield


def limit_idle_time() -> None:
    """A caller who sends or takes next to nothing for so long is given up; usually it is sooner."""
    connection = request.environ.get("gunicorn.socket")
    if isinstance(connection, socket.socket):
        connection.settimeout(IDLE_S)
    if LATE_BODY in request.environ:
        request.environ[LATE_BODY].limit(IDLE_S)
