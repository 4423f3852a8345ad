"""Making a UFS2 file system out of a directory, as FreeBSD's newfs(8) and a copy would.

The format is that of <ufs/ffs/fs.h> and <ufs/ufs/dinode.h>, little-endian; what FreeBSD checks when it mounts
stands in ffs_subr.c, validate_sblock. Debian's makefs is not used: it puts the superblock of UFS2 where UFS1
has it, and later releases of FreeBSD refuse that. Only what is needed is written, so that a thin volume stays
thin; elsewhere the device has to read as zeros, as a new one does.
"""

import io
import os
import stat
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from vmbuilder.errors import ProvisioningError, ValidationError

_BLOCK: Final = 32768
_FRAGMENT: Final = 4096
_PER_BLOCK: Final = _BLOCK // _FRAGMENT
_SUPERBLOCK_AT: Final = 65536
_SUPERBLOCK_ROOM: Final = 8192
_SUPERBLOCK_BYTES: Final = 4096
_MAGIC: Final = 0x19540119
_GROUP_MAGIC: Final = 0x090255
_INODE_BYTES: Final = 256
_DIRECT: Final = 12
_POINTERS: Final = _BLOCK // 8
_INLINE_BYTES: Final = 120
_DIRECTORY_BYTES: Final = 512
_ROOT: Final = 2
_CLUSTER: Final = 4
_MIN_FREE_PERCENT: Final = 8
_SOFT_UPDATES: Final = 2
_FLAGS_MOVED: Final = 0x80

# Everything below is in fragments, from the beginning of a cylinder group. One has 640 MiB and an inode for
# each 16 KiB; not much more could be described by the maps in one block.
_GROUP: Final = 163840
_INODES: Final = 40960
_SUPERBLOCK_COPY: Final = 24
_GROUP_BLOCK: Final = 32
_INODE_TABLE: Final = 40
_DATA: Final = _INODE_TABLE + _INODES * _INODE_BYTES // _FRAGMENT

# In a group's block, after its 168 bytes of numbers. Sums are counted from 1: the place of the one before is
# still the free map's.
_INODE_MAP: Final = 168
_FREE_MAP: Final = _INODE_MAP + _INODES // 8
_CLUSTER_SUMS: Final = _FREE_MAP + _GROUP // 8 - 4
_CLUSTER_MAP: Final = _CLUSTER_SUMS + 4 * (_CLUSTER + 1)
_GROUP_BYTES: Final = _CLUSTER_MAP + _GROUP // _PER_BLOCK // 8

_ENTRY_TYPES: Final = {stat.S_IFDIR: 4, stat.S_IFREG: 8, stat.S_IFLNK: 10}


def make(node: str, size_bytes: int, tree: Path, label: str) -> None:
    """Make a file system of this size on a device that reads as zeros, and copy `tree` into it.

    Owners, modes, times and hard links are kept. Raises ValidationError when it does not fit.
    """
    descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        maker = _Maker(descriptor, size_bytes)
        maker.copy(tree)
        maker.finish(label)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class _Group:
    """A cylinder group: what it has left and has in use. A byte of `free` is a block, a bit a fragment."""

    free: bytearray
    inodes: int = 0
    directories: int = 0

    def whole(self) -> int:
        return self.free.count(0xFF)

    def loose(self) -> int:
        """Free fragments of blocks that are partly used."""
        return sum(value.bit_count() for value in self.free) - 8 * self.whole()

    def runs(self) -> list[int]:
        """How many runs of free fragments of each length partly used blocks have."""
        sums = [0] * _PER_BLOCK
        for value in self.free:
            if value not in (0, 0xFF):
                for run in f"{value:08b}".split("0"):
                    sums[len(run)] += 1 if run else 0
        return sums

    def clusters(self) -> tuple[list[int], bytes]:
        """How many runs of free blocks of each length there are (longer ones count as the longest); a map."""
        bits = bytes(0x31 if value == 0xFF else 0x30 for value in self.free)
        sums = [0] * (_CLUSTER + 1)
        for run in bits.split(b"0"):
            sums[min(len(run), _CLUSTER)] += 1 if run else 0
        number = int(bits[::-1], 2) if bits else 0
        return sums, number.to_bytes(_GROUP // _PER_BLOCK // 8, "little")


@dataclass
class _Content:
    """Where a file's bytes are: its blocks, how many fragments that takes, and the pointers to them."""

    blocks: list[int] = field(default_factory=list)
    fragments: int = 0
    indirect: list[int] = field(default_factory=list)
    inline: bytes = b""


class _Maker:
    """Writes the files first, one behind the other, and at the end the maps that say so."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        size = size_bytes // _BLOCK * _PER_BLOCK
        # A last group that would hold little more than its own tables is left out.
        if size > _GROUP and 0 < size % _GROUP < 2 * _DATA:
            size -= size % _GROUP
        if size < 2 * _DATA:
            raise ValidationError(f"{size_bytes} bytes are too few for a UFS2 file system")
        self._size, self._count = size, -(-size // _GROUP)
        self._summary_bytes = -(-self._count * 16 // _FRAGMENT) * _FRAGMENT
        self._groups = [self._new_group(number) for number in range(self._count)]
        self._next_block, self._open, self._next_inode = 0, (0, 0), _ROOT
        self._linked: dict[tuple[int, int], int] = {}
        self._now = int(time.time())

    def _new_group(self, number: int) -> _Group:
        blocks = min(_GROUP, self._size - number * _GROUP) // _PER_BLOCK
        free = bytearray(b"\xff") * blocks
        first = 0 if number == 0 else _SUPERBLOCK_COPY // _PER_BLOCK
        end = _DATA + (self._summary_bytes // _FRAGMENT if number == 0 else 0)
        for block in range(first, end // _PER_BLOCK):
            free[block] = 0
        if end % _PER_BLOCK:
            free[end // _PER_BLOCK] = 0xFF << end % _PER_BLOCK & 0xFF
        return _Group(free, inodes=_ROOT if number == 0 else 0)

    # Files.

    def copy(self, tree: Path) -> None:
        """Copy a directory, which becomes the root."""
        number = self._new_inode()
        self._directory(tree, number, number)

    def _directory(self, path: Path, number: int, parent: int) -> None:
        entries, links = [(b".", number, 4), (b"..", parent, 4)], 2
        for found in sorted(os.scandir(os.fsencode(path)), key=lambda entry: entry.name):
            status = found.stat(follow_symlinks=False)
            kind = _ENTRY_TYPES.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                raise ProvisioningError(f"{os.fsdecode(found.path)!r} is no file, directory or link")
            if stat.S_ISDIR(status.st_mode):
                child = self._new_inode()
                self._directory(Path(os.fsdecode(found.path)), child, number)
                links += 1
            else:
                child = self._file(Path(os.fsdecode(found.path)), status)
            entries.append((found.name, child, kind))
        self._groups[number // _INODES].directories += 1
        content, size = self._store_bytes(_directory_bytes(entries))
        self._write_inode(number, os.lstat(path), size, links, content)

    def _file(self, path: Path, status: os.stat_result) -> int:
        """The inode of a file or symbolic link; the same for all its hard links."""
        key = (status.st_dev, status.st_ino)
        if key in self._linked:
            return self._linked[key]
        number = self._linked[key] = self._new_inode()
        if stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(path))
            short = len(target) < _INLINE_BYTES
            content, size = (_Content(inline=target), len(target)) if short else self._store_bytes(target)
        else:
            with path.open("rb") as stream:
                content, size = self._store(stream, status.st_size)
        self._write_inode(number, status, size, status.st_nlink, content)
        return number

    def _store_bytes(self, data: bytes) -> tuple[_Content, int]:
        return self._store(io.BytesIO(data), len(data))

    def _store(self, stream: BinaryIO, size: int) -> tuple[_Content, int]:
        """Write a file's bytes. Up to twelve blocks, the last is only as many fragments as it needs."""
        content = _Content()
        for place in range(0, size, _BLOCK):
            data = stream.read(min(_BLOCK, size - place))
            needed = _PER_BLOCK if size > _DIRECT * _BLOCK else -(-len(data) // _FRAGMENT)
            address = self._take(needed)
            self._write(address, data)
            content.blocks.append(address)
            content.fragments += needed
        rest, level = content.blocks[_DIRECT:], 1
        while rest:
            reach = _POINTERS**level
            content.indirect.append(self._indirect(rest[:reach], level, content))
            rest, level = rest[reach:], level + 1
        return content, size

    def _indirect(self, blocks: list[int], level: int, content: _Content) -> int:
        """A block of pointers to blocks, or to blocks of pointers."""
        address = self._take(_PER_BLOCK)
        content.fragments += _PER_BLOCK
        if level > 1:
            reach = _POINTERS ** (level - 1)
            parts = [blocks[start : start + reach] for start in range(0, len(blocks), reach)]
            blocks = [self._indirect(part, level - 1, content) for part in parts]
        self._write(address, struct.pack(f"<{len(blocks)}q", *blocks))
        return address

    # Room.

    def _take(self, fragments: int) -> int:
        """The address of so many free fragments of one block."""
        if fragments == _PER_BLOCK:
            return self._take_block()
        address, left = self._open
        if fragments > left:
            address, left = self._take_block(), _PER_BLOCK
            self._mark(address, _PER_BLOCK, free=True)
        self._mark(address, fragments, free=False)
        self._open = (address + fragments, left - fragments)
        return address

    def _take_block(self) -> int:
        while self._next_block < self._size // _PER_BLOCK:
            group, index = divmod(self._next_block, _GROUP // _PER_BLOCK)
            self._next_block += 1
            if self._groups[group].free[index] == 0xFF:
                self._groups[group].free[index] = 0
                return group * _GROUP + index * _PER_BLOCK
        raise ValidationError(f"the files do not fit into {self._size * _FRAGMENT >> 20} MiB")

    def _mark(self, address: int, fragments: int, *, free: bool) -> None:
        group, rest = divmod(address, _GROUP)
        block, first = divmod(rest, _PER_BLOCK)
        bits = ((1 << fragments) - 1) << first
        kept = self._groups[group].free[block] & ~bits
        self._groups[group].free[block] = kept | (bits if free else 0)

    def _new_inode(self) -> int:
        number, self._next_inode = self._next_inode, self._next_inode + 1
        if number >= self._count * _INODES:
            raise ValidationError(f"there are more files than the {self._count * _INODES} that fit")
        self._groups[number // _INODES].inodes += 1
        return number

    # What is on the disk.

    def _write(self, address: int, data: bytes) -> None:
        if data.strip(b"\0"):  # elsewhere the device reads as zeros already
            os.pwrite(self._descriptor, data, address * _FRAGMENT)

    def _write_inode(
        self, number: int, status: os.stat_result, size: int, links: int, content: _Content
    ) -> None:
        raw = bytearray(_INODE_BYTES)
        sectors = content.fragments * _FRAGMENT // 512
        owner = (status.st_mode, links, status.st_uid, status.st_gid, _BLOCK, size, sectors)
        struct.pack_into("<HhIIIQQ", raw, 0, *owner)
        struct.pack_into("<4q", raw, 32, *[int(status.st_mtime)] * 4)
        struct.pack_into("<I", raw, 80, number)  # the generation: any number
        if content.inline:
            raw[112 : 112 + len(content.inline)] = content.inline
        else:
            pointers = [*content.blocks[:_DIRECT], *[0] * (_DIRECT - len(content.blocks)), *content.indirect]
            struct.pack_into(f"<{len(pointers)}q", raw, 112, *pointers)
        group, index = divmod(number, _INODES)
        place = (group * _GROUP + _INODE_TABLE) * _FRAGMENT + index * _INODE_BYTES
        os.pwrite(self._descriptor, raw, place)

    def finish(self, label: str) -> None:
        """Write all maps and superblocks."""
        sums = [
            (group.directories, group.whole(), _INODES - group.inodes, group.loose())
            for group in self._groups
        ]
        superblock = self._superblock(label, [sum(column) for column in zip(*sums, strict=True)])
        summary = b"".join(struct.pack("<4i", *each) for each in sums)
        self._write(_DATA, summary)
        for number, (group, counters) in enumerate(zip(self._groups, sums, strict=True)):
            self._write(number * _GROUP + _SUPERBLOCK_COPY, superblock)
            self._write(number * _GROUP + _GROUP_BLOCK, self._group_block(number, group, counters))
        os.pwrite(self._descriptor, superblock, _SUPERBLOCK_AT)

    def _group_block(self, number: int, group: _Group, counters: tuple[int, int, int, int]) -> bytes:
        raw = bytearray(_BLOCK)
        blocks = len(group.free)
        head = (_GROUP_MAGIC, self._now, number, blocks * _PER_BLOCK, *counters)
        struct.pack_into("<4xIII4xI4i", raw, 0, *head)
        struct.pack_into(f"<{_PER_BLOCK}i", raw, 52, *group.runs())
        offsets = (_INODE_MAP, _FREE_MAP, _GROUP_BYTES, _CLUSTER_SUMS, _CLUSTER_MAP)
        # Inodes behind those written are made when they are needed; whole blocks of them.
        per_block = _BLOCK // _INODE_BYTES
        made = min(_INODES, max(2, -(-group.inodes // per_block)) * per_block)
        struct.pack_into("<8I", raw, 92, *offsets, blocks, _INODES, made)
        struct.pack_into("<q", raw, 136, self._now)
        used = (1 << group.inodes) - 1
        raw[_INODE_MAP:_FREE_MAP] = used.to_bytes(_INODES // 8, "little")
        raw[_FREE_MAP : _FREE_MAP + blocks] = group.free
        sums, clusters = group.clusters()
        struct.pack_into(f"<{_CLUSTER}i", raw, _CLUSTER_SUMS + 4, *sums[1:])
        raw[_CLUSTER_MAP:_GROUP_BYTES] = clusters
        return bytes(raw)

    def _superblock(self, label: str, totals: list[int]) -> bytes:
        raw = bytearray(_SUPERBLOCK_BYTES)
        summary = self._summary_bytes // _FRAGMENT
        data = self._size - _SUPERBLOCK_COPY - self._count * (_DATA - _SUPERBLOCK_COPY) - summary
        group_bytes = -(-_GROUP_BYTES // _FRAGMENT) * _FRAGMENT
        largest = _BLOCK * (_DIRECT + _POINTERS + _POINTERS**2 + _POINTERS**3) - 1
        identity = struct.unpack("<2i", os.urandom(8))
        fields: dict[int, tuple[str, tuple[int, ...]]] = {
            8: ("4i", (_SUPERBLOCK_COPY, _GROUP_BLOCK, _INODE_TABLE, _DATA)),
            28: ("i", (-1,)),
            44: ("5i", (self._count, _BLOCK, _FRAGMENT, _PER_BLOCK, _MIN_FREE_PERCENT)),
            72: ("4i", (-_BLOCK, -_FRAGMENT, _BLOCK.bit_length() - 1, _FRAGMENT.bit_length() - 1)),
            88: ("5i", (_CLUSTER, _POINTERS, 3, (_FRAGMENT // 512).bit_length() - 1, _SUPERBLOCK_BYTES)),
            116: ("2i", (_POINTERS, _BLOCK // _INODE_BYTES)),
            144: ("2i", identity),
            156: ("2i", (self._summary_bytes, group_bytes)),
            184: ("2i", (_INODES, _GROUP)),
            209: ("BBB", (1, 0, _FLAGS_MOVED)),  # clean
            860: ("i", (_BLOCK,)),
            872: ("q", (self._size * _FRAGMENT,)),
            1000: ("q", (_SUPERBLOCK_AT,)),
            1008: ("4q", tuple(totals)),
            1072: ("4q", (self._now, self._size, data, _DATA)),
            1196: ("2I", (16384, 64)),  # what is expected of files and directories
            1312: ("4i", (_SOFT_UPDATES, _CLUSTER, _INLINE_BYTES, 2)),
            1328: ("3q", (largest, _BLOCK - 1, _FRAGMENT - 1)),
            1372: ("I", (_MAGIC,)),
        }
        for place, (layout, values) in fields.items():
            struct.pack_into(f"<{layout}", raw, place, *values)
        raw[680 : 680 + len(label)] = label.encode()
        return bytes(raw)


def _directory_bytes(entries: list[tuple[bytes, int, int]]) -> bytes:
    """A directory: no entry crosses a sector, and the last in each reaches to its end."""
    sectors: list[bytearray] = [bytearray()]
    last = 0
    for name, number, kind in entries:
        if len(name) > 255:
            raise ValidationError("a file's name is longer than 255 bytes")
        length = 8 + (len(name) + 4) // 4 * 4
        if len(sectors[-1]) + length > _DIRECTORY_BYTES:
            _stretch(sectors[-1], last)
            sectors.append(bytearray())
        last = len(sectors[-1])
        sectors[-1] += struct.pack("<IHBB", number, length, kind, len(name)) + name.ljust(length - 8, b"\0")
    _stretch(sectors[-1], last)
    return b"".join(sectors)


def _stretch(sector: bytearray, last: int) -> None:
    """Give the sector's last entry, at `last`, the room that is left."""
    struct.pack_into("<H", sector, last + 4, _DIRECTORY_BYTES - last)
    sector.extend(bytes(_DIRECTORY_BYTES - len(sector)))
