"""The upload of an image: survives broken connections, restarts of the API, and the end of this program."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pvc.connections import store_path
from pvc.context import Context
from pvc.errors import CliError
from pvc.image_request import ImageRequest
from pvc.image_wait import PATH as IMAGE_PATH
from pvc.image_wait import UNFINISHED, ImageFailed, ImageGone, check_ready, image_or_none, wait_for_image
from pvc.output import Row, size_text
from pvc.patience import Patience, passes
from pvc.transfer_progress import Transfer, transfer_display
from pvc.tus import Chunk, ChunkRefused, ChunkTooLarge, TusUpload, UploadGone, create_upload
from pvc.upload_record import UploadRecord, upload_record
from pvc.upload_source import FileChanged, UploadSource

if TYPE_CHECKING:
    from requests import Session

MIB = 1 << 20
# A chunk is in memory while it is sent, and sent again as a whole when the connection breaks.
FIRST_CHUNK_BYTES = 4 * MIB
MIN_CHUNK_BYTES = 1 * MIB
MAX_CHUNK_BYTES = 16 * MIB
SHORT_CHUNK_S = 1.0
LONG_CHUNK_S = 10.0
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
END_PAUSES_S = (0.5, 1.0)
# How long nothing may arrive before the upload is given up. The server keeps it for longer.
PATIENCE_S = 300.0
SERVER_KEEPS = "15 minutes"
# How often in a row chunks may be refused, and uploads lost, before that is no accident.
MAX_REFUSALS = 8
MAX_STARTS = 4
# What does not pass when an upload is begun anew.
LASTING_KINDS = ("unauthenticated", "forbidden")
# With these errors what has arrived is worth nothing.
WORTHLESS_KINDS = ("wrong-input", "no-space")
# What a chunk is told when its upload is ended, as a node daemon does that is restarted.
ENDED = "cancelled"

Answer = TypeVar("Answer")


def upload_image(context: Context, request: ImageRequest, source: UploadSource, *, keep: bool) -> Row:
    """Upload the file, wait for the image, and return it.

    Ctrl-C ends the upload on the server, or with `keep` leaves it there to be continued.
    """
    folder = store_path().parent / "uploads"
    with upload_record(context, folder, context.client.connection.url, request.name) as record:
        upload = ImageUpload(context, request, source, record)
        try:
            return upload.run()
        except KeyboardInterrupt:
            raise upload.stopped(keep=keep) from None
        except CliError as error:
            if isinstance(error, ImageFailed):
                record.forget()
            elif isinstance(error, FileChanged) or error.kind in WORTHLESS_KINDS:
                upload.end()
            elif error.status is not None and not passes(error):
                upload.forget_if_gone()
            raise


class ImageUpload:
    """One file on its way to one image."""

    def __init__(
        self, context: Context, request: ImageRequest, source: UploadSource, record: UploadRecord
    ) -> None:
        self._context = context
        self._client = context.client
        self._request = request
        self._source = source
        self._record = record
        self._size_bytes = source.size_bytes
        self._tus: TusUpload | None = None
        self._offset = 0
        self._furthest = 0
        self._refusals = 0
        self._breaks = 0
        self._chunk_bytes = FIRST_CHUNK_BYTES
        self._patience = Patience(PATIENCE_S, self._given_up)

    def run(self) -> Row:
        """The image when it is ready. Uploads that the server loses begin anew, a few times."""
        for start in range(MAX_STARTS):
            try:
                self._begin(again=start > 0)
                self._send_all()
                return self._finished(wait_for_image(self._context, self._client, self._request.name))
            except UploadGone:
                image = self._image_made_of_it()
                if image is not None:
                    return self._finished(image)
            except ImageGone as error:
                if start == MAX_STARTS - 1:
                    raise error
            self._forget()
            self._context.note("the server does not have the upload any more; starting over")
        raise CliError(
            f"the upload of {self._request.name} was given up",
            why=f"the server lost it {MAX_STARTS} times",
            kind="busy-retry",
        )

    def stopped(self, *, keep: bool) -> CliError:
        """The error after Ctrl-C; ends the upload unless it is to be kept."""
        what = f"the upload of {self._request.name} was stopped at {self._share()}"
        if keep or not self.end():
            hint = f"the same command continues it within {SERVER_KEEPS}; then the server ends it"
        else:
            hint = "nothing is left of it; with `--keep` the same command could have continued it"
        return CliError(what, hint=hint, kind="interrupted")

    def end(self) -> bool:
        """End the upload on the server; whether that is certain."""
        if self._tus is not None:
            try:
                end_upload(self._tus)
            except CliError:
                return False
        self._forget()
        return True

    def forget_if_gone(self) -> None:
        """After an error: remember the upload only as long as it can be continued."""
        try:
            if self._tus is not None:
                self._tus.offset(self._size_bytes)
        except UploadGone:
            self._forget()
        except CliError:
            return

    # ---- the beginning

    def _begin(self, *, again: bool) -> None:
        """Continue the upload that is remembered, else begin a new one."""
        known = self._record.content
        if known:
            self._tus = TusUpload(self._client, str(known.get("id") or "none"))
            if {**known, **self._mine()} != known:
                self._context.note(
                    "the file or the options are others than before; the earlier upload is ended"
                )
                end_upload(self._tus)
                self._forget()
            else:
                self._offset = self._furthest = self._tus.offset(self._size_bytes)
                self._context.note(f"continuing the earlier upload at {self._share()}")
        if self._tus is None:
            self._tus = self._create(again=again)
            self._record.remember({"id": self._tus.id, "image_created": self._created(), **self._mine()})

    def _mine(self) -> dict[str, Any]:
        """What must be the same for an upload to be continued."""
        return {"file": self._source.identity().as_json(), "parameters": self._request.metadata}

    def _create(self, *, again: bool) -> TusUpload:
        """Begin an upload. After a loss the API or nodes may be away for a while, so refusals may pass."""
        is_answer_lost = False
        while True:
            try:
                return create_upload(self._client, self._size_bytes, self._request.metadata)
            except CliError as error:
                if not again or error.kind in LASTING_KINDS:
                    raise
                if error.kind == "exists":
                    self._free_name(error, is_ours=is_answer_lost)
                is_answer_lost = is_answer_lost or error.kind in ("unreachable", "timeout")
                self._patience.bear(passing(error))
                self._pause()

    def _free_name(self, error: CliError, *, is_ours: bool) -> None:
        """Raise the error when the image that has the name stays.

        What is left of a lost upload is being undone. When the answer to our own beginning was lost,
        it has begun, and nobody knows how to continue it: it is ended.
        """
        try:
            image = image_or_none(self._client, self._request.name)
            if image is not None and image.get("state") != UNFINISHED:
                raise error
            if image is not None and is_ours and self._is_like_ours(image):
                self._client.delete(*IMAGE_PATH, self._request.name)
        except CliError as found:
            if found is error or not passes(found):
                raise

    def _is_like_ours(self, image: Row) -> bool:
        return (image.get("source"), image.get("size_bytes"), image.get("pool"), image.get("format")) == (
            "upload",
            self._size_bytes,
            self._request.pool,
            self._request.format,
        )

    def _created(self) -> str | None:
        """When the image was made: tells it from a later one of the same name, should the upload be gone."""
        try:
            image = image_or_none(self._client, self._request.name)
        except CliError:
            return None
        return str(image.get("created") or "") or None if image else None

    def _forget(self) -> None:
        self._record.forget()
        self._tus = None
        self._offset = self._furthest = 0

    # ---- sending

    def _send_all(self) -> None:
        with transfer_display(self._context, f"uploading {self._source.name}", self._size_bytes) as display:
            display.begin_at(self._offset)
            while self._offset < self._size_bytes:
                try:
                    # After trouble the connection may have half a chunk in it.
                    with self._client.chunk_session() as session:
                        self._send_chunks(session, display)
                except (UploadGone, FileChanged):
                    raise
                except CliError as error:
                    self._overcome(error, display)
                    self._ask_offset(display)
            display.wait("all is sent")

    def _send_chunks(self, session: "Session", display: Transfer) -> None:
        """While one chunk is sent the next is read."""
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(Chunk.read, self._source, self._offset, self._chunk_bytes)
            while self._offset < self._size_bytes:
                chunk = following.result()
                if chunk.offset != self._offset:  # the server has taken less than the last one
                    chunk = Chunk.read(self._source, self._offset, self._chunk_bytes)
                after = chunk.offset + len(chunk.data)
                following = reader.submit(Chunk.read, self._source, after, self._chunk_bytes)
                self._send(session, chunk, display)

    def _send(self, session: "Session", chunk: Chunk, display: Transfer) -> None:
        began = time.monotonic()
        self._offset = self._upload.send(session, chunk, self._size_bytes, display.advance)
        if self._offset <= self._furthest:
            raise ChunkRefused("the server takes nothing", why=f"it stays at {self._offset}", kind="internal")
        self._furthest = self._offset
        self._patience.renew()
        self._refusals = self._breaks = 0
        self._resize_chunks(time.monotonic() - began)

    @property
    def _upload(self) -> TusUpload:
        if self._tus is None:
            raise AssertionError("not begun")
        return self._tus

    def _overcome(self, error: CliError, display: Transfer) -> None:
        """Do what is to be done before the next attempt, or raise the error."""
        if isinstance(error, ChunkTooLarge):
            if self._chunk_bytes <= MIN_CHUNK_BYTES:
                raise error
            self._chunk_bytes = max(MIN_CHUNK_BYTES, self._chunk_bytes // 2)
        elif isinstance(error, ChunkRefused):
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS:
                raise error
            display.remark(f"{error.what}; sending it again")
            if self._refusals > 1:
                self._pause()
        else:
            self._patience.bear(passing(error) if error.kind == ENDED else error)
            self._chunk_bytes = max(MIN_CHUNK_BYTES, self._chunk_bytes // 2)
            display.remark(f"{error}; trying again")
            self._pause()

    def _ask_offset(self, display: Transfer) -> None:
        self._offset = self._ask(lambda: self._upload.offset(self._size_bytes))
        display.move_to(self._offset)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Ask until there is an answer. A server in trouble may be restarting, whatever its status says."""
        while True:
            try:
                return question()
            except UploadGone:
                raise
            except CliError as error:
                self._patience.bear(passing(error) if (error.status or 0) >= 500 else error)
                self._pause()

    def _pause(self) -> None:
        time.sleep(PAUSES_S[min(self._breaks, len(PAUSES_S) - 1)])
        self._breaks += 1

    def _resize_chunks(self, seconds: float) -> None:
        """Large chunks cost less, small ones lose less when the connection breaks."""
        if seconds < SHORT_CHUNK_S:
            self._chunk_bytes = min(MAX_CHUNK_BYTES, self._chunk_bytes * 2)
        elif seconds > LONG_CHUNK_S:
            self._chunk_bytes = max(MIN_CHUNK_BYTES, self._chunk_bytes // 2)

    # ---- the end

    def _finished(self, image: Row) -> Row:
        self._record.forget()
        return image

    def _image_made_of_it(self) -> Row | None:
        """The image, when the upload is gone because it was complete. Raises ImageFailed if it failed."""
        created = self._record.content.get("image_created")
        image = self._ask(lambda: image_or_none(self._client, self._request.name))
        if image is None or not created or str(image.get("created")) != created:
            return None
        if image.get("state") != UNFINISHED:
            check_ready(image, self._request.name)
            return image
        try:
            return wait_for_image(self._context, self._client, self._request.name)
        except ImageGone:
            return None

    def _share(self) -> str:
        share = 100 * self._offset // self._size_bytes if self._size_bytes else 100
        return f"{share} % ({size_text(self._offset)} of {size_text(self._size_bytes)})"

    def _given_up(self, error: CliError) -> CliError:
        return CliError(
            f"the upload of {self._request.name} was given up at {self._share()}",
            why=str(error),
            hint=f"the same command continues it; the server keeps what it has for {SERVER_KEEPS}",
            kind=error.kind,
        )


def passing(error: CliError) -> CliError:
    """The error as one that may pass."""
    return CliError(error.what, why=error.why, hint=error.hint, kind="busy-retry", status=error.status)


def end_upload(tus: TusUpload) -> None:
    """A server that still has the last chunk in hand is asked again."""
    for pause_s in (*END_PAUSES_S, None):
        try:
            tus.end()
            return
        except CliError as error:
            if pause_s is None or not (passes(error) or isinstance(error, ChunkRefused)):
                raise
            time.sleep(pause_s)
