"""VMDK streams (subformat streamOptimized) into raw data, in one pass and bounded memory.

Header, descriptor, maybe tables, then grains: each a marker (sector, compressed size) and its data, padded
to whole sectors. Tables follow the grains they describe and are found by a footer, as VMware writes them, or
stand before all grains, as qemu-img writes them. Either way they are compared with what has come: the decoder
keeps a keyed digest of each table that the grains call for (one for 32 MiB of disk), not the tables.

Grains must come in ascending order, as all known writers write them; so none can come twice.
"""

import io
import os
import struct
from array import array
from collections.abc import Generator, Iterator
from hashlib import blake2b
from typing import Any, Final, NoReturn

from pvccommon.errors import WrongInput
from pvccommon.images.inflate import Buffer, InflateError, Inflater
from pvccommon.images.limits import DEFAULT_LIMITS, MIB, Limits
from pvccommon.images.vmdk_descriptor import parse_descriptor
from pvccommon.images.vmdk_header import (
    AT_END,
    CONVERT_HINT,
    SECTOR_BYTES,
    TABLE_BYTES,
    TABLE_ENTRIES,
    ZEROED_GRAINS,
    SparseHeader,
    parse_sparse_header,
)
from pvccommon.storage.pool import ByteSource
from pvccommon.storage.sparse import data_blocks

WHAT: Final = "decode the VMDK stream"
BUFFER_BYTES: Final = 1 * MIB
RUN_BYTES: Final = 1 * MIB  # the largest grain
# Smaller grains would mean more tables than fit in memory.
MIN_GRAIN_SECTORS: Final = 128
MARKER_BYTES: Final = 12
END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = 0, 1, 2, 3
MAX_PADDING_BYTES: Final = 16 * MIB
EMPTY_TABLE: Final = bytes(TABLE_BYTES)

_MARKER = struct.Struct("<QII")


class StreamOptimizedDecoder:
    """One image. The constructor reads as far as the first grain; `runs` gives the data, once.

    Everything wrong raises WrongInput. What `runs` has given before it ends is not yet known to be right.
    """

    def __init__(self, source: ByteSource, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._input = io.BufferedReader(_Raw(source), BUFFER_BYTES)
        self._inflater = Inflater()
        self._position = 0  # sectors
        self._directories: dict[int, array[int]] = {}
        self._tables = _Tables()
        self.header = parse_sparse_header(WHAT, self._read_sectors(1), limits)
        self._check_header()
        self._read_front()

    @property
    def virtual_bytes(self) -> int:
        """Size of the disk."""
        return self.header.virtual_bytes

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        """Offset and content of what is not zero, ascending, at most a MiB at a time.

        The content is there until the next is asked for: its memory is used again.
        """
        footer = yield from self._grains()
        self._check_tables(footer)

    # ---- what stands before the grains

    def _check_header(self) -> None:
        header = self.header
        if not header.is_stream:
            _refuse("the VMDK is not streamOptimized: its data is not in a stream of grains", CONVERT_HINT)
        if header.grain < MIN_GRAIN_SECTORS:
            _refuse(
                f"the VMDK has grains of {header.grain} sectors; a stream needs at least {MIN_GRAIN_SECTORS}"
            )
        if header.overhead <= header.descriptor + header.descriptor_size - 1:
            _refuse("the VMDK's descriptor is not before its data")

    def _read_front(self) -> None:
        header = self.header
        self._skip_to(header.descriptor)
        descriptor = parse_descriptor(WHAT, self._read_sectors(header.descriptor_size))
        if descriptor.sectors != header.capacity:
            _refuse("the VMDK's descriptor and header give different sizes")
        if header.directory != AT_END and header.directory < header.overhead:
            self._read_front_tables()
        self._skip_to(header.overhead)

    def _read_front_tables(self) -> None:
        self._skip_to(self.header.directory)
        directory = self._read_directory()
        for sector in directory:
            if sector == 0:
                continue
            if not self._position <= sector <= self.header.overhead - TABLE_BYTES // SECTOR_BYTES:
                _refuse("the VMDK's tables are not in an order that can be read in one pass", CONVERT_HINT)
            self._skip_to(sector)
            self._read_table()

    def _read_directory(self) -> "array[int]":
        """The directory at the current position, noted under it."""
        position, size = self._position, 4 * self.header.tables
        directory = array("I", self._read_sectors(-(-size // SECTOR_BYTES))[:size])
        self._directories[position] = directory
        return directory

    def _read_table(self) -> None:
        position = self._position
        data = self._read_sectors(TABLE_BYTES // SECTOR_BYTES)
        if self.header.flags & ZEROED_GRAINS:
            data = _without_zeroed(data)
        self._tables.found(position, data)

    # ---- grains

    def _grains(self) -> Generator[tuple[int, memoryview], None, SparseHeader | None]:
        """The grains, neighbours together; returns the footer, None when there is none."""
        header, tables = self.header, self._tables
        grain_sectors, grain_bytes, virtual_bytes = header.grain, header.grain_bytes, header.virtual_bytes
        packed = Buffer(MARKER_BYTES + 2 * grain_bytes + SECTOR_BYTES)
        run = _Run()
        last = -1
        footer: SparseHeader | None = None
        while True:
            count = self._input.readinto(memoryview(packed.data)[:SECTOR_BYTES])
            if not count:
                yield from run.data()
                return footer
            if count < MARKER_BYTES + 4:
                _refuse("the VMDK ends inside a marker; it is cut off")
            number, size, kind = _MARKER.unpack_from(packed.data)
            position = self._position
            self._position += 1
            if size == 0:
                if kind == END_OF_STREAM:
                    self._check_end()
                    yield from run.data()
                    return footer
                footer = self._read_metadata(kind, number, footer)
                continue
            index, rest = divmod(number, grain_sectors)
            if rest or number >= header.capacity:
                _refuse(f"a grain of the VMDK belongs to sector {number}, where no grain can be")
            if index <= last:
                _refuse("the VMDK's grains are not in ascending order", CONVERT_HINT)
            last = index
            offset = number * SECTOR_BYTES
            if offset != run.end or run.room < grain_bytes:
                yield from run.data()
                run.begin(offset)
            self._read_grain(packed, count, size)
            self._inflate(packed, size, run, min(grain_bytes, virtual_bytes - offset))
            tables.grain(index, position)

    def _read_grain(self, packed: Buffer, count: int, size: int) -> None:
        """The rest of a grain whose first sector, or the `count` bytes that there are of it, is read."""
        if size > 2 * self.header.grain_bytes:
            _refuse(f"a grain of the VMDK has {size} compressed bytes, more than can be")
        end = MARKER_BYTES + size
        if end > SECTOR_BYTES:
            whole = -(-end // SECTOR_BYTES) * SECTOR_BYTES
            count += self._input.readinto(memoryview(packed.data)[count:whole])
            self._position += whole // SECTOR_BYTES - 1
        if count < end:
            _refuse("the VMDK ends inside a grain; it is cut off")

    def _inflate(self, packed: Buffer, size: int, run: "_Run", wanted: int) -> None:
        """Add a grain's content to the run; never more than a grain is made."""
        grain_bytes = self.header.grain_bytes
        try:
            count = self._inflater.inflate(packed, MARKER_BYTES, size, run.buffer, run.length, grain_bytes)
        except InflateError as exc:
            if exc.too_long:
                _refuse("a grain of the VMDK inflates to more than its size, or is damaged")
            _refuse("a grain of the VMDK is damaged: it cannot be inflated")
        if count < wanted:
            _refuse(f"a grain of the VMDK inflates to {count} of {wanted} bytes; it is damaged")
        run.length += wanted

    # ---- what stands between and after the grains

    def _read_metadata(self, kind: int, sectors: int, footer: SparseHeader | None) -> SparseHeader | None:
        """A table, directory or footer behind its marker; returns the footer known by now."""
        if footer is not None:
            _refuse("something other than the end follows the VMDK's footer")
        expected = {
            GRAIN_TABLE: TABLE_BYTES // SECTOR_BYTES,
            GRAIN_DIRECTORY: -(-4 * self.header.tables // SECTOR_BYTES),
            FOOTER: 1,
        }.get(kind)
        if expected is None:
            _refuse(f"the VMDK has a marker of the unknown type {kind}")
        if sectors != expected:
            _refuse(f"a marker of the VMDK announces {sectors} sectors instead of {expected}")
        if kind == GRAIN_TABLE:
            if self._tables.count > 2 * self.header.tables:
                _refuse("the VMDK has more grain tables than it can need")
            self._read_table()
        elif kind == GRAIN_DIRECTORY:
            if len(self._directories) > 1:
                _refuse("the VMDK has more than two grain directories")
            self._read_directory()
        else:
            return parse_sparse_header(WHAT, self._read_sectors(1), self._limits)
        return None

    def _check_end(self) -> None:
        count = 0
        while piece := self._input.read(BUFFER_BYTES):
            count += len(piece)
            if piece.count(0) != len(piece) or count > MAX_PADDING_BYTES:
                _refuse("there is data after the end of the VMDK stream")

    def _check_tables(self, footer: SparseHeader | None) -> None:
        position = self.header.directory
        if position == AT_END:
            if footer is None:
                _refuse("the VMDK has no footer; it is cut off")
            if (footer.capacity, footer.grain) != (self.header.capacity, self.header.grain):
                _refuse("the VMDK's footer and header give different sizes")
            position = footer.directory
        directory = self._directories.get(position)
        if directory is None:
            _refuse("the VMDK's grain directory is not where its header says; it is damaged or cut off")
        self._tables.compare(directory)

    # ---- input

    def _read_sectors(self, count: int) -> bytes:
        data = self._input.read(count * SECTOR_BYTES)
        if len(data) < count * SECTOR_BYTES and self._position:
            _refuse("the VMDK ends inside its tables; it is cut off")
        self._position += count
        return data

    def _skip_to(self, sector: int) -> None:
        """Pass over sectors, in bounded pieces."""
        if sector < self._position:
            _refuse("the VMDK's descriptor and tables overlap")
        while self._position < sector:
            self._read_sectors(min(sector - self._position, BUFFER_BYTES // SECTOR_BYTES))


class _Run:
    """Grains that follow each other."""

    def __init__(self) -> None:
        self.buffer = Buffer(RUN_BYTES)
        self.begin(0)

    def begin(self, start: int) -> None:
        """The next one, in the memory of the last."""
        self.start = start
        self.length = 0

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def room(self) -> int:
        return RUN_BYTES - self.length

    def data(self) -> Iterator[tuple[int, memoryview]]:
        """What is not zero of it."""
        view = memoryview(self.buffer.data)
        for start, end in data_blocks(self.buffer.data, self.length):
            yield self.start + start, view[start:end]


class _Tables:
    """Grain tables as they are, and as the grains that came call for: digests of both."""

    def __init__(self) -> None:
        # The key keeps anybody from making two tables of one digest.
        self._key = os.urandom(16)
        self._empty = self._digest(EMPTY_TABLE)
        self._is: dict[int, bytes] = {}  # by position
        self._should: dict[int, bytes] = {}  # by number
        self._number = -1
        self._current = array("I")

    @property
    def count(self) -> int:
        return len(self._is)

    def found(self, position: int, data: bytes) -> None:
        """A table stands at this sector."""
        self._is[position] = self._empty if data == EMPTY_TABLE else self._digest(data)

    def grain(self, index: int, position: int) -> None:
        """A grain, with a higher number than all before, stands at this sector."""
        number, slot = divmod(index, TABLE_ENTRIES)
        if number != self._number:
            self._close()
            self._number = number
            self._current = array("I", EMPTY_TABLE)
        if position >= 2**32:
            _refuse("the VMDK is larger than its tables can describe")
        self._current[slot] = position

    def compare(self, directory: "array[int]") -> None:
        """Raises WrongInput unless the tables of this directory are those of the grains that came."""
        self._close()
        for number, position in enumerate(directory):
            found = self._is.get(position) if position else self._empty
            if found != self._should.get(number, self._empty):
                _refuse("the VMDK's tables do not match its grains; it is damaged or cut off")

    def _close(self) -> None:
        if self._number >= 0:
            self._should[self._number] = self._digest(self._current.tobytes())

    def _digest(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=8, key=self._key).digest()


class _Raw(io.RawIOBase):
    """A ByteSource as a file, so that its buffer is the standard library's."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _without_zeroed(data: bytes) -> bytes:
    """A table in which grains that are all zeros (entry 1) are like those that are not there."""
    return array("I", [0 if entry == 1 else entry for entry in array("I", data)]).tobytes()


def _refuse(why: str, hint: str = "") -> NoReturn:
    raise WrongInput(WHAT, why, hint)
