"""One import: bytes that arrive become the volumes of an image.

    source ──pump──▶ decoder (no rights) ──frames──▶ volumes of the pool

The image's row says `importing` and who does it; a volume's row is written before the volume is made. Who
calls this removes them when it fails; when the importing process dies, the sweeper does.
"""

import hashlib
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, Any

from pvccommon import names
from pvccommon.errors import EnvironmentFault, PvcError, TimedOut, WrongInput
from pvccommon.images.byte_source import PIECE_BYTES
from pvccommon.images.frames import DATA, END, NEXT, PLAN, Frame, read_frames
from pvccommon.models import ImageKind, Json
from pvccommon.storage.pool import ByteSource, StoragePool, VolumeWriter
from pvcnoded.imports.confined import confined_program
from pvcnoded.imports.image_rows import ImageRows, ImportRequest
from pvcnoded.imports.stall import Stall, watched

DECODER = "pvccommon.images.decoder"
MIB = 1024**2
# A slow processor inflates more than this of a compressed image in a second.
BYTES_PER_CPU_SECOND = 4 * MIB
LEAST_CPU_S = 600
# Between two pieces of its input or output a decoder has work for seconds.
STALL_S = 300
OnProgress = Callable[[int], None]  # bytes taken so far


class Importer:
    """Imports one image into one pool. Not safe to use twice."""

    def __init__(
        self,
        rows: ImageRows,
        pool: StoragePool,
        image_id: int,
        request: ImportRequest,
        *,
        max_virtual_bytes: int,
        on_progress: OnProgress = lambda taken: None,
    ) -> None:
        self._rows = rows
        self._pool = pool
        self._image_id = image_id
        self._request = request
        self._max_virtual_bytes = max_virtual_bytes
        self._on_progress = on_progress
        self._plan: Json = {}
        self._volumes: list[str] = []
        self._writers = ExitStack()
        self._writer: VolumeWriter | None = None
        self._written: set[int] = set()
        self._ended: PvcError | None = None
        self._end_decoder: Callable[[], None] = lambda: None
        self._stop_source: Callable[[], None] = lambda: None

    def expect(self, size_bytes: int) -> None:
        """How much the source will give, before `run`."""
        self._request = replace(self._request, size_bytes=size_bytes)

    def end(self, error: PvcError) -> None:
        """Let `run` raise this soon. Safe to call from any thread, at any time."""
        self._ended = error
        self._end_decoder()
        # A decoder that was just starting may have survived its parent: without input it ends by itself.
        self._stop_source()

    def run(self, source: ByteSource, stop_source: Callable[[], None] = lambda: None) -> None:
        """Read the source to its end; then the image is ready. Raises what is wrong, and undoes nothing.

        `stop_source` makes a read of the source that waits end.
        """
        self._stop_source = stop_source
        with self._writers:
            digest, end = self._transfer(source, stop_source)
            self._check_digest(digest)
        self._make_blank_disks()
        self._make_clonable()
        self._finish(digest, end)

    # ---- the bytes

    def _transfer(self, source: ByteSource, stop_source: Callable[[], None]) -> tuple[str, Json]:
        """(SHA-256 of what came, the decoder's last words)."""
        request = self._request
        arguments = [request.kind, request.format, str(request.size_bytes)]
        arguments += [request.system] if request.system else []
        cpu_s = LEAST_CPU_S + request.size_bytes // BYTES_PER_CPU_SECOND
        with (
            confined_program(DECODER, arguments, cpu_s=cpu_s) as program,
            watched(STALL_S, self._end_stalled) as stall,
        ):
            assert program.stdin is not None and program.stdout is not None
            self._end_decoder = program.kill
            pump = _Pump(source, program.stdin, request.size_bytes, self._on_progress, stall)
            pump.start()
            try:
                end = self._take_frames(program.stdout, stall)
            except BaseException as exc:
                program.kill()
                source_error = pump.error  # why the decoder got no more, if that was it
                stop_source()
                pump.join()
                if not isinstance(exc, PvcError):
                    raise
                raise self._ended or source_error or exc from exc
            pump.join()
        self._end_decoder = lambda: None
        if pump.error:
            raise pump.error
        return pump.digest.hexdigest(), end

    def _take_frames(self, output: IO[bytes], stall: Stall) -> Json:
        self._check_not_ended()
        for frame in read_frames(output):
            self._check_not_ended()
            if frame.kind == END:
                return frame.document
            with stall.elsewhere():
                self._take(frame)
        raise EnvironmentFault(self._request.what, "the decoder ended early")

    def _take(self, frame: Frame) -> None:
        if frame.kind == PLAN:
            self._accept(frame.document)
        elif frame.kind == NEXT:
            self._begin_disk(frame.document)
        elif frame.kind == DATA:
            self._write(frame)

    def _end_stalled(self) -> None:
        why = f"what reads it did nothing for {STALL_S:g} s"
        self.end(
            TimedOut(self._request.what, why, "try again; should it happen again, it is a defect of ours")
        )

    def _check_not_ended(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _accept(self, plan: Json) -> None:
        """Keep the decoder's plan and write the rows of the volumes."""
        try:
            disks = [(str(disk["disk_id"]), int(disk["size_bytes"])) for disk in plan["disks"]]
        except (KeyError, TypeError, ValueError) as exc:
            raise self._bad_decoder() from exc
        if self._plan or len({disk_id for disk_id, _ in disks}) < len(disks):
            raise self._bad_decoder()
        if not disks:
            raise WrongInput(self._request.what, "it has no disks")
        total_bytes = sum(size_bytes for _, size_bytes in disks)
        if total_bytes > self._max_virtual_bytes:
            why = f"it holds {total_bytes} bytes, over the limit of {self._max_virtual_bytes}"
            raise WrongInput(self._request.what, why, "raise images.max_virtual_gib in the configuration")
        self._plan = plan
        self._volumes = self._rows.add_volumes(self._image_id, self._pool, disks)

    def _begin_disk(self, document: Json) -> None:
        position = document.get("position")
        if not isinstance(position, int) or not 0 <= position < len(self._volumes):
            raise self._bad_decoder()
        if position in self._written:
            raise self._bad_decoder()
        self._written.add(position)
        self._writers.close()
        size_bytes = self._plan["disks"][position]["size_bytes"]
        writer = self._pool.write_volume(self._volumes[position], size_bytes)
        self._writer = self._writers.enter_context(writer)

    def _write(self, frame: Frame) -> None:
        if self._writer is None:
            raise self._bad_decoder()
        self._writer.write(frame.offset, frame.data)

    def _bad_decoder(self) -> EnvironmentFault:
        return EnvironmentFault(self._request.what, "the decoder does not keep to its plan")

    # ---- the end

    def _check_digest(self, digest: str) -> None:
        wanted = self._request.sha256
        if wanted and digest != wanted.lower():
            why = f"its SHA-256 is {digest}, not {wanted.lower()}"
            raise WrongInput(self._request.what, why, "was it changed, or cut, on its way?")

    def _make_blank_disks(self) -> None:
        """Disks of an OVA that come without a file."""
        for position, volume in enumerate(self._volumes):
            if position not in self._written:
                self._pool.create_volume(volume, self._plan["disks"][position]["size_bytes"])

    def _make_clonable(self) -> None:
        """CD-ROMs are used as they are, by any number of VMs."""
        if self._request.kind == ImageKind.ISO:
            return
        for volume in self._volumes:
            self._pool.create_snapshot(volume, names.IMAGE_SNAPSHOT)
            self._pool.protect_snapshot(volume, names.IMAGE_SNAPSHOT)

    def _finish(self, digest: str, end: Json) -> None:
        self._check_not_ended()
        warnings, verified = end.get("warnings"), end.get("verified")
        document = {
            "hardware": self._plan.get("hardware"),
            "warnings": [str(text)[:1000] for text in warnings[:200]] if isinstance(warnings, list) else [],
            "verified": verified if isinstance(verified, dict) else {},
        }
        self._rows.finish(self._image_id, digest, document)


class _Pump(threading.Thread):
    """Moves the source's bytes to the decoder and takes their digest on the way."""

    def __init__(
        self, source: ByteSource, pipe: IO[bytes], size_bytes: int, on_progress: OnProgress, stall: Stall
    ) -> None:
        super().__init__(name="image pump", daemon=True)
        self._source = source
        self._pipe = pipe
        self._size_bytes = size_bytes
        self._on_progress = on_progress
        self._stall = stall
        self.digest: Any = hashlib.sha256()
        self.error: PvcError | None = None

    def run(self) -> None:
        try:
            self._move()
        except PvcError as exc:
            self.error = exc
        except BrokenPipeError:
            pass  # the decoder has found something wrong, and tells what
        finally:
            try:
                self._pipe.close()
            except BrokenPipeError:
                pass

    def _move(self) -> None:
        taken = 0
        while piece := self._next(taken):
            self.digest.update(piece)
            self._pipe.write(piece)
            taken += len(piece)
        if taken < self._size_bytes:
            raise WrongInput("read the image", f"only {taken} of {self._size_bytes} bytes came")

    def _next(self, taken: int) -> bytes:
        with self._stall.elsewhere():
            self._on_progress(taken)
            return self._source.read(PIECE_BYTES)
