"""The imports of one process: how many there may be, and what becomes of each."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from pvccommon.config import Images
from pvccommon.database import Database
from pvccommon.errors import Busy, Cancelled, Internal, PvcError, WrongInput
from pvccommon.storage import get_pool
from pvccommon.storage.pool import ByteSource, StoragePool
from pvcnoded.imports.image_rows import (
    UPLOAD,
    ImageRows,
    ImportRequest,
    remove_image,
    remove_volumes,
    restarted,
)
from pvcnoded.imports.importer import Importer
from pvcnoded.imports.staged import FORMATS as STAGED_FORMATS
from pvcnoded.imports.staged import StagedImporter
from pvcnoded.imports.volume_content import VolumeImporter, VolumeRequest
from pvcnoded.lease import Owner

GIB = 1024**3
SHOW_EVERY_S = 2.0
CLEAN_UP_PAUSE_S = 10.0
WATCH_EVERY_S = 5.0
logger = logging.getLogger("pvc.imports")


class Imports:
    """Begins imports, not more than configured at one time, and knows those under way."""

    def __init__(
        self, settings: Images, database: Database, pools: Mapping[str, StoragePool], owner: Owner
    ) -> None:
        self.settings = settings
        self.database = database
        self.rows = ImageRows(database, owner.node, str(owner))
        self._pools = pools
        self._free = threading.BoundedSemaphore(settings.imports)
        self._running: dict[int, ImageImport] = {}

    def begin(
        self, pool_name: str, request: ImportRequest, *, keep_failed: bool, token: str | None = None
    ) -> "ImageImport":
        """An import whose row is written; its `run` comes next. Raises Busy, Exists, NotFound, WrongInput."""
        pool = get_pool(self._pools, pool_name)
        max_bytes = self.settings.max_virtual_gib * GIB
        if request.size_bytes > max_bytes:
            why = f"its {request.size_bytes} bytes are over the limit of {max_bytes}"
            raise WrongInput(request.what, why, "raise images.max_virtual_gib in the configuration")
        if not self._free.acquire(blocking=False):
            why = f"{self.settings.imports} imports are under way on node {self.rows.node}"
            raise Busy(request.what, why, "try again later, or raise images.imports in its configuration")
        try:
            image_id = self.rows.begin(pool, request, token)
        except BaseException:
            self._free.release()
            raise
        begun = ImageImport(self, pool, image_id, request, keep_failed=keep_failed)
        self._running[image_id] = begun
        return begun

    def find(self, image_id: int) -> "ImageImport | None":
        return self._running.get(image_id)

    def end_all(self, wait_s: float = 0.0) -> None:
        """Let all imports under way end with this process. Of those that were fetched the rows say so."""
        running = list(self._running.values())
        for begun in running:
            begun.interrupt()
        for begun in running:
            begun.ended.wait(wait_s)

    def watch(self) -> NoReturn:
        """For a thread: what was removed meanwhile, when this node seemed to be dead, is ended here, too."""
        while True:
            time.sleep(WATCH_EVERY_S)
            try:
                self.end_removed()
            except PvcError as exc:
                logger.warning("imports under way: %s", exc.message)

    def end_removed(self) -> None:
        """End imports whose row is gone, or another's. Raises EnvironmentFault."""
        running = list(self._running.items())
        mine = self.rows.mine() if running else set()
        for image_id, begun in running:
            if image_id not in mine:
                begun.end()

    def release(self, image_id: int) -> None:
        """The import has ended, and nothing of it is left to do."""
        if self._running.pop(image_id, None) is not None:
            self._free.release()


class ImageImport:
    """One import from its row to its end. A failed one leaves nothing, or with `keep_failed` its error."""

    def __init__(
        self,
        imports: Imports,
        pool: StoragePool,
        image_id: int,
        request: ImportRequest,
        *,
        keep_failed: bool,
    ) -> None:
        self.image_id = image_id
        self.request = request
        self.error: PvcError | None = None
        self._ending: PvcError | None = None
        self.ended = threading.Event()  # also everything was removed
        self.stop: Callable[[], None] = lambda: None  # ends what else is under way
        self._imports = imports
        self._pool = pool
        self._keep_failed = keep_failed
        self._shown = time.monotonic()
        self._importer = _importer_of(request)(
            imports.rows,
            pool,
            image_id,
            request,
            max_virtual_bytes=imports.settings.max_virtual_gib * GIB,
            on_progress=self._show_progress,
        )

    def run(self, source: ByteSource, stop_source: Callable[[], None] = lambda: None) -> None:
        """Import what the source gives. Raises what went wrong, after everything has been removed."""
        with self.ending():
            self.take(source, stop_source)

    def start(self, source: ByteSource, stop_source: Callable[[], None]) -> None:
        """The same in a thread of its own; then `error` tells."""

        def run() -> None:
            with self.in_thread():
                self.run(source, stop_source)

        threading.Thread(target=run, name=self.request.what, daemon=True).start()

    def expect(self, size_bytes: int) -> None:
        """How much will come, when that was not known before."""
        self.request = replace(self.request, size_bytes=size_bytes)
        self._imports.rows.set_size(self.image_id, size_bytes)
        self._importer.expect(size_bytes)

    def take(self, source: ByteSource, stop_source: Callable[[], None]) -> None:
        """The import itself; within `ending`."""
        self._importer.run(source, stop_source)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever happens in the block, afterwards the image is ready, or what was made is removed."""
        try:
            yield
        except BaseException as exc:
            self.fail(exc)
            raise
        self._release()

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Errors go to the log; they are in the row, too."""
        try:
            yield
        except PvcError as exc:
            logger.warning("%s: %s", self.request.what, exc.message)
        except Exception:
            logger.exception("%s failed", self.request.what)

    def end(self) -> None:
        """Let it end soon, and leave nothing."""
        self.forget_failure()
        self._end(Cancelled(self.request.what, "it was ended"))

    def interrupt(self) -> None:
        """Let it end soon with this process. Whoever uploads is told at once, and begins anew."""
        if self.request.source == UPLOAD:
            self.forget_failure()
        self._end(restarted(self.request.what))

    def _end(self, error: PvcError) -> None:
        self._ending = error
        self._importer.end(error)
        self.stop()

    def forget_failure(self) -> None:
        """Nobody wants to know why it failed."""
        self._keep_failed = False

    def fail(self, exc: BaseException) -> None:
        """Remove what was made. What cannot be removed now is tried again until this process ends."""
        if isinstance(exc, PvcError):
            self.error = self._ending or exc  # what was ended may complain about just that
        else:
            self.error = Internal(self.request.what, f"{type(exc).__name__}: {exc}")
        try:
            self._clean_up()
        except Exception as failure:
            logger.error("%s: its leftovers stay for now: %s", self.request.what, failure)
            threading.Thread(target=self._clean_up_later, daemon=True).start()
        else:
            self._release()

    def _clean_up_later(self) -> None:
        while True:
            time.sleep(CLEAN_UP_PAUSE_S)
            try:
                self._clean_up()
            except Exception as failure:
                logger.error("%s: its leftovers stay for now: %s", self.request.what, failure)
            else:
                self._release()
                return

    def _clean_up(self) -> None:
        database = self._imports.database
        if self._keep_failed and self.error is not None:
            remove_volumes(database, self._pool, self.image_id)
            self._imports.rows.fail(self.image_id, self.error)
        else:
            remove_image(database, self._pool, self.image_id)

    def _release(self) -> None:
        self._imports.release(self.image_id)
        self.ended.set()

    def _show_progress(self, taken_bytes: int) -> None:
        if time.monotonic() - self._shown > SHOW_EVERY_S:
            percent = min(100.0, round(100 * taken_bytes / max(1, self.request.size_bytes), 1))
            self._imports.rows.show_progress(self.image_id, percent)
            self._shown = time.monotonic()


def _importer_of(request: ImportRequest) -> type[Importer]:
    if isinstance(request, VolumeRequest):
        return VolumeImporter
    return StagedImporter if request.format in STAGED_FORMATS else Importer
