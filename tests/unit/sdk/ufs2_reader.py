"""Reading a UFS2 file system and checking that its parts agree, as fsck does: made for tests, in memory.

The layout is that of <ufs/ffs/fs.h> and <ufs/ufs/dinode.h>, little-endian.
"""

import mmap
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

SUPERBLOCK = 65536
MAGIC = 0x19540119
GROUP_MAGIC = 0x090255
ROOT = 2
_INODE_BYTES = 256


@dataclass(frozen=True)
class Inode:
    """What a file is; `blocks` are those of its content, each with its number of fragments."""

    mode: int
    links: int
    uid: int
    gid: int
    size: int
    blocks: tuple[tuple[int, int], ...]
    pointers: tuple[tuple[int, int], ...]
    inline: bytes


class Ufs2:
    """A file system in a byte string, or a mapped file."""

    def __init__(self, image: bytes | mmap.mmap) -> None:
        self._image = image
        head = image[SUPERBLOCK : SUPERBLOCK + 1376]
        assert struct.unpack_from("<I", head, 1372)[0] == MAGIC, "no UFS2 superblock"
        self.cblkno, self.iblkno, self.dblkno = struct.unpack_from("<3i", head, 12)
        self.groups, self.bsize, self.fsize, self.frag = struct.unpack_from("<4i", head, 44)
        self.inodes_per_group, self.frags_per_group = struct.unpack_from("<2i", head, 184)
        self.cssize = struct.unpack_from("<i", head, 156)[0]
        self.totals = struct.unpack_from("<4q", head, 1008)
        self.size, _, self.csaddr = struct.unpack_from("<3q", head, 1080)

    def at(self, fragment: int, length: int) -> bytes:
        return self._image[fragment * self.fsize : fragment * self.fsize + length]

    def inode(self, number: int) -> Inode:
        group, index = divmod(number, self.inodes_per_group)
        place = (group * self.frags_per_group + self.iblkno) * self.fsize + index * _INODE_BYTES
        raw = self._image[place : place + _INODE_BYTES]
        mode, links, uid, gid = struct.unpack_from("<HhII", raw, 0)
        size, count = struct.unpack_from("<2Q", raw, 16)
        if stat.S_ISLNK(mode) and count == 0:
            return Inode(mode, links, uid, gid, size, (), (), raw[112 : 112 + size])
        pointers: list[tuple[int, int]] = []
        found = list(struct.unpack_from("<12q", raw, 112))
        for level, block in enumerate(struct.unpack_from("<3q", raw, 208), 1):
            found += self._indirect(block, level, pointers) if block else []
        needed = -(-size // self.bsize)
        blocks = [(block, self._frags(size, index)) for index, block in enumerate(found[:needed]) if block]
        return Inode(mode, links, uid, gid, size, tuple(blocks), tuple(pointers), b"")

    def _indirect(self, block: int, level: int, pointers: list[tuple[int, int]]) -> list[int]:
        pointers.append((block, self.frag))
        entries = [item for (item,) in struct.iter_unpack("<q", self.at(block, self.bsize))]
        if level == 1:
            return entries
        return [below for item in entries if item for below in self._indirect(item, level - 1, pointers)]

    def _frags(self, size: int, index: int) -> int:
        """A file's last block is as many fragments as it needs, if it is a direct one."""
        rest = size - index * self.bsize
        return self.frag if rest >= self.bsize or index >= 12 else -(-rest // self.fsize)

    def content(self, inode: Inode) -> bytes:
        data = b"".join(self.at(block, frags * self.fsize) for block, frags in inode.blocks)
        return inode.inline or data[: inode.size]

    def entries(self, number: int) -> Iterator[tuple[str, int]]:
        data, place = self.content(self.inode(number)), 0
        while place < len(data):
            target, length, _, name_length = struct.unpack_from("<IHBB", data, place)
            if target:
                yield data[place + 8 : place + 8 + name_length].decode(), target
            place += length

    @cached_property
    def tree(self) -> dict[str, int]:
        """Every path with its inode's number."""
        found, waiting = {"/": ROOT}, [("", ROOT)]
        while waiting:
            above, number = waiting.pop()
            for name, target in self.entries(number):
                if name not in (".", ".."):
                    found[f"{above}/{name}"] = target
                    if stat.S_ISDIR(self.inode(target).mode):
                        waiting.append((f"{above}/{name}", target))
        return found

    def check_superblock(self) -> None:
        """Assert what FreeBSD demands of a superblock before it reads anything else."""
        head = self._image[SUPERBLOCK : SUPERBLOCK + 1376]
        sblkno = struct.unpack_from("<i", head, 8)[0]
        bmask, fmask, bshift, fshift, clusters, _, fragshift, sectors, bytes_ = struct.unpack_from(
            "<9i", head, 72
        )
        nindir, inopb = struct.unpack_from("<2i", head, 116)
        _, cluster_sums, inline, _ = struct.unpack_from("<4i", head, 1312)
        largest, block_bits, fragment_bits = struct.unpack_from("<3q", head, 1328)
        rounded = -(-(SUPERBLOCK + 8192) // self.fsize // self.frag) * self.frag
        assert struct.unpack_from("<q", head, 1000)[0] == SUPERBLOCK
        assert (sblkno, self.cblkno, self.iblkno) == (rounded, rounded + self.frag, rounded + 2 * self.frag)
        assert self.dblkno == self.iblkno + self.inodes_per_group * _INODE_BYTES // self.fsize
        assert (bmask, fmask, block_bits, fragment_bits) == (
            -self.bsize,
            -self.fsize,
            self.bsize - 1,
            self.fsize - 1,
        )
        assert (1 << bshift, 1 << fshift, 1 << fragshift) == (self.bsize, self.fsize, self.frag)
        assert (512 << sectors, bytes_ % 512, inline) == (self.fsize, 0, 120)
        assert (nindir, inopb) == (self.bsize // 8, self.bsize // _INODE_BYTES)
        assert largest == self.bsize * (12 + nindir + nindir**2 + nindir**3) - 1
        assert clusters == cluster_sums > 1
        assert self.inodes_per_group % inopb == 0
        assert (self.groups - 1) * self.frags_per_group < self.size <= self.groups * self.frags_per_group
        assert self.cssize == -(-self.groups * 16 // self.fsize) * self.fsize
        for group in range(self.groups):
            copy = self.at(group * self.frags_per_group + sblkno, 1376)
            assert copy == head, f"group {group}: copy of the superblock"

    def check(self) -> None:
        """Assert that names, link counts, both bitmaps and all counters agree."""
        self.check_superblock()
        links: dict[int, int] = {}
        for number in set(self.tree.values()):
            if stat.S_ISDIR(self.inode(number).mode):
                for _, target in self.entries(number):
                    links[target] = links.get(target, 0) + 1
        assert {number: self.inode(number).links for number in links} == links
        owned: set[int] = set(range(self.csaddr, self.csaddr + -(-self.cssize // self.fsize)))
        for number in links:
            inode = self.inode(number)
            for block, frags in (*inode.blocks, *inode.pointers):
                mine = set(range(block, block + frags))
                assert not mine & owned, f"inode {number} shares blocks"
                owned |= mine
        counted = [self._check_group(group, set(links), owned) for group in range(self.groups)]
        assert tuple(map(sum, zip(*counted, strict=True))) == self.totals

    def _check_group(self, group: int, inodes: set[int], owned: set[int]) -> tuple[int, int, int, int]:
        base = group * self.frags_per_group
        raw = self.at(base + self.cblkno, self.bsize)
        magic, index = struct.unpack_from("<I4xI", raw, 4)
        assert (magic, index) == (GROUP_MAGIC, group)
        frags = struct.unpack_from("<I", raw, 20)[0]
        counters = struct.unpack_from("<4I", raw, 24)
        used_at, free_at = struct.unpack_from("<2I", raw, 92)
        used = {base_inode for base_inode in range(self.inodes_per_group) if _bit(raw, used_at, base_inode)}
        first = group * self.inodes_per_group
        reserved = {0, 1} if group == 0 else set()
        mine = {number - first for number in inodes if first <= number < first + self.inodes_per_group}
        assert used == mine | reserved, f"group {group}: inodes"
        free = {base + number for number in range(frags) if _bit(raw, free_at, number)}
        # Up to the first data block of a group are boot blocks, superblocks, and inodes.
        meta = set(range(base if group == 0 else base + self.cblkno - self.frag, base + self.dblkno))
        expected = set(range(base, base + frags)) - owned - meta
        assert free - expected == set(), f"group {group}: blocks in use are marked free"
        directories = sum(stat.S_ISDIR(self.inode(first + number).mode) for number in mine)
        blocks = [range(start, start + self.frag) for start in range(base, base + frags, self.frag)]
        whole = sum(all(number in free for number in block) for block in blocks)
        nifree = self.inodes_per_group - len(used)
        assert counters == (directories, whole, nifree, len(free) - whole * self.frag), (
            f"group {group}: counters"
        )
        self._check_runs(raw, [{number for number in block if number in free} for block in blocks])
        lost = expected - free
        assert len(lost) <= self.dblkno, f"group {group}: blocks of nobody are marked used"
        return counters

    def _check_runs(self, raw: bytes, blocks: list[set[int]]) -> None:
        """Runs of free fragments in partly used blocks, and runs of free blocks, are counted by length."""
        runs = [0] * 8
        for block in blocks:
            if len(block) < self.frag:
                starts = [number for number in block if number - 1 not in block]
                for start in starts:
                    runs[next(n for n in range(1, 9) if start + n not in block)] += 1
        assert list(struct.unpack_from("<8i", raw, 52)) == runs
        sums_at, map_at, count = struct.unpack_from("<3I", raw, 104)
        assert count == len(blocks)
        whole = [len(block) == self.frag for block in blocks]
        assert [_bit(raw, map_at, number) for number in range(count)] == whole
        sums, length = [0] * 5, 0
        for free in (*whole, False):
            if not free and length:
                sums[min(length, 4)] += 1
            length = length + 1 if free else 0
        assert list(struct.unpack_from("<4i", raw, sums_at + 4)) == sums[1:]


def _bit(raw: bytes, place: int, number: int) -> bool:
    return bool(raw[place + number // 8] >> number % 8 & 1)
