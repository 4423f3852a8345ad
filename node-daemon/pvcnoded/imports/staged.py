"""Imports of formats that must be read here and there: the file goes to a volume of its own first.

    source ──▶ volume image_<id>_staged ──inspector, qemu-img (no rights)──▶ volume of the disk

Nothing with rights looks into the file, but for the flags of a VMDK: one that is a stream is decoded while it
comes, as in `Importer`. The inspector, ours, refuses whatever names other files. Only then does QEMU look, in
the same confinement, with the two block devices and nothing else.
"""

import hashlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pvccommon.errors import PvcError, TimedOut, WrongInput, error_from_dict
from pvccommon.images.formats import qemu_format
from pvccommon.images.vmdk_header import MAGIC as VMDK_MAGIC
from pvccommon.images.vmdk_header import SECTOR_BYTES as HEADER_BYTES
from pvccommon.images.vmdk_header import begins_stream
from pvccommon.models import Json
from pvccommon.storage.pool import SECTOR_BYTES, BlockDevice, ByteSource
from pvcnoded.imports.confined import confined, confined_program
from pvcnoded.imports.importer import BYTES_PER_CPU_SECOND, Importer

VMDK = "vmdk"
FORMATS = ("qcow2", "vhd", "vhdx", "vdi", VMDK)
INSPECTOR = "pvccommon.images.inspector"
STAGED = "staged"
STAGED_POSITION = 1000  # behind every disk
LOOK_S = 60
COPY_S = 6 * 3600
MOST_OUTPUT_BYTES = 256 * 1024
QEMU_MEMORY_BYTES = 4 * 1024**3  # addresses, not pages: QEMU reserves more than it uses
# Exit codes of `qemu-img check`: space that nothing uses; a format it cannot check.
LEAKS, NO_CHECK = 3, 63
# Words of `qemu-img info` for what must not be there, however it got past the inspector.
REFUSED = ("backing-filename", "full-backing-filename", "encrypted")


class StagedImporter(Importer):
    """One import of such a format."""

    def run(self, source: ByteSource, stop_source: Callable[[], None] = lambda: None) -> None:
        """See Importer."""
        if self._request.format == VMDK:
            source = _Peeked(source, HEADER_BYTES)
            # What is no VMDK at all is refused by the decoder, without a copy.
            if begins_stream(source.beginning) or not source.beginning.startswith(VMDK_MAGIC):
                return super().run(source, stop_source)
        self._stop_source = stop_source
        staged = self._rows.add_volumes(
            self._image_id, self._pool, [(STAGED, self._request.size_bytes)], first_position=STAGED_POSITION
        )[0]
        digest = self._store(staged, source)
        self._check_digest(digest)
        with self._pool.open_device(staged, read_only=True) as device:
            warnings = self._convert(device)
        self._pool.delete_volume(staged)
        self._rows.drop_volume(self._image_id, staged)
        self._make_clonable()
        self._finish(digest, {"warnings": warnings})

    def _store(self, staged: str, source: ByteSource) -> str:
        """The file's SHA-256."""
        counted = _Digested(source, self._on_progress, self._check_not_ended)
        self._pool.import_stream(staged, counted, self._request.size_bytes)
        return str(counted.digest.hexdigest())

    def _convert(self, device: BlockDevice) -> list[str]:
        """Make the disk's volume; warnings."""
        found = self._inspect(device)
        size_bytes = -(-int(found["virtual_bytes"]) // SECTOR_BYTES) * SECTOR_BYTES
        self._accept({"disks": [{"disk_id": "sda", "size_bytes": size_bytes}]})
        form = qemu_format(self._request.format)
        self._check_qemu_agrees(device, form, size_bytes)
        self._check_whole(device, form)
        volume = self._volumes[0]
        self._pool.create_volume(volume, size_bytes)
        argv = ["qemu-img", "convert", "-q", "-n", "--target-is-zero", "-f", form, "-O", "raw"]
        cpu_s = LOOK_S + size_bytes // BYTES_PER_CPU_SECOND
        try:
            with self._pool.open_device(volume) as target:
                devices = {"source": device, "target": target}
                self._qemu([*argv, "/dev/source", "/dev/target"], devices, cpu_s, COPY_S)
        except PvcError as exc:
            full = self._pool.find_full(self._request.what)
            if full is not None:
                raise full from exc
            raise
        return [str(text)[:1000] for text in found["warnings"][:100]]

    def _inspect(self, device: BlockDevice) -> Json:
        limits = [str(self._request.size_bytes), str(self._max_virtual_bytes)]
        arguments = ["/dev/source", self._request.format, *limits]
        program = confined_program(INSPECTOR, arguments, cpu_s=LOOK_S, devices={"source": device})
        _, output, _ = self._output(program, LOOK_S * 2)
        found = self._parsed(output)
        if "error" in found:
            raise error_from_dict(found["error"])
        if not isinstance(found.get("virtual_bytes"), int) or not isinstance(found.get("warnings"), list):
            raise self._bad_decoder()
        return found

    def _check_qemu_agrees(self, device: BlockDevice, form: str, size_bytes: int) -> None:
        argv = ["qemu-img", "info", "--output=json", "-f", form, "/dev/source"]
        found = self._parsed(self._qemu(argv, {"source": device}, LOOK_S, LOOK_S * 2))
        for word in REFUSED:
            if found.get(word):
                raise WrongInput(self._request.what, f"QEMU says that it has a {word}")
        if found.get("virtual-size") not in range(size_bytes - SECTOR_BYTES + 1, size_bytes + 1):
            raise WrongInput(self._request.what, f"QEMU reads another size: {found.get('virtual-size')}")

    def _check_whole(self, device: BlockDevice, form: str) -> None:
        """QEMU reads what is missing at the end of a file as zeros."""
        argv = ["qemu-img", "check", "-q", "-f", form, "/dev/source"]
        cpu_s = LOOK_S + self._request.size_bytes // BYTES_PER_CPU_SECOND
        self._qemu(argv, {"source": device}, cpu_s, COPY_S, ok=(0, LEAKS, NO_CHECK))

    def _parsed(self, output: bytes) -> Json:
        try:
            found = json.loads(output)
        except ValueError as exc:
            raise self._bad_decoder() from exc
        if not isinstance(found, dict):
            raise self._bad_decoder()
        return found

    def _qemu(
        self,
        argv: Sequence[str],
        devices: Mapping[str, BlockDevice],
        cpu_s: int,
        timeout_s: float,
        ok: Sequence[int] = (0,),
    ) -> bytes:
        program = confined(argv, cpu_s=cpu_s, devices=devices, memory_bytes=QEMU_MEMORY_BYTES)
        code, output, errors = self._output(program, timeout_s)
        if code not in ok:
            lines = errors.decode(errors="replace").strip().splitlines() or [f"it ended with {code}"]
            raise WrongInput(self._request.what, f"QEMU refuses it: {lines[0][:500]}")
        return output

    def _output(
        self, program: AbstractContextManager["subprocess.Popen[bytes]"], timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """(exit code, output, errors), the beginnings of them."""
        deadline = time.monotonic() + timeout_s
        with program as process:
            assert process.stdout is not None and process.stderr is not None
            written = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
            still_open = set(written)
            while still_open:
                self._check_not_ended()
                if time.monotonic() > deadline:
                    raise TimedOut(self._request.what, f"reading it took longer than {timeout_s:g} s")
                for fd in select.select(list(still_open), [], [], 1.0)[0]:
                    piece = os.read(fd, 65536)
                    written[fd] += piece[: MOST_OUTPUT_BYTES - len(written[fd])]
                    if not piece:
                        still_open.discard(fd)
            code = process.wait(timeout=LOOK_S)
        output, errors = (bytes(text) for text in written.values())
        return code, output, errors


class _Peeked:
    """A source whose beginning is known."""

    def __init__(self, source: ByteSource, size_bytes: int) -> None:
        self._source = source
        self.beginning = b""
        while len(self.beginning) < size_bytes and (piece := source.read(size_bytes - len(self.beginning))):
            self.beginning += piece
        self._left = self.beginning

    def read(self, size: int, /) -> bytes:
        if not self._left:
            return self._source.read(size)
        piece, self._left = self._left[:size], self._left[size:]
        return piece


class _Digested:
    """A source whose digest is taken while it is read."""

    def __init__(
        self, source: ByteSource, on_progress: Callable[[int], None], check: Callable[[], None]
    ) -> None:
        self.digest: Any = hashlib.sha256()
        self._source = source
        self._on_progress = on_progress
        self._check = check
        self._taken = 0

    def read(self, size: int, /) -> bytes:
        self._check()
        piece = self._source.read(size)
        self.digest.update(piece)
        self._taken += len(piece)
        self._on_progress(self._taken)
        return piece
