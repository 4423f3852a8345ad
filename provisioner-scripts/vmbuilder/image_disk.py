"""A disk that was cloned from an image: what is on it, and growing that to the disk's size.

Everything here is done by programs of this sandbox (sfdisk, blkid, e2fsck, resize2fs); no kernel mounts
anything. What cannot be grown without mounting it, XFS and btrfs, is left to the guest.
"""

from dataclasses import dataclass
from typing import Final

from vmbuilder import filesystem, log
from vmbuilder.command import run
from vmbuilder.errors import BrokerError, CommandFailed, ProvisioningError
from vmbuilder.partition_table import NotUnderstood, PartitionTable, read_table, write_last
from vmbuilder.partitions import Partition
from vmbuilder.volumes import FileSystem, Volume, device_size_bytes

NEVER: Final = "never"
REQUIRED: Final = "required"
EXT: Final = ("ext2", "ext3", "ext4")
GROWN_BY_GUEST: Final = ("xfs", "btrfs")
_CHECK_TIMEOUT_S: Final = 900
_RESIZE_TIMEOUT_S: Final = 900
# e2fsck(8): no errors; corrected; corrected, and a mounted one would want a reboot.
_CHECKED: Final = (0, 1, 2)


@dataclass(frozen=True)
class Area:
    """A partition, or the whole disk (`number` None), with the file system on it."""

    number: int | None
    kind: str
    identifier: str
    node: str


class ImageDisk:
    """One mapped volume. First grow(), then areas()."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._unknown: NotUnderstood | None = None
        self._table: PartitionTable | None = None
        try:
            self._table = read_table(self._node, device_size_bytes(self._node))
        except NotUnderstood as exc:
            self._unknown = exc

    @property
    def _node(self) -> str:
        return self.volume.mapped_node()

    def grow(self, mode: str) -> None:
        """Let the last partition and its file system take the rest of the disk.

        What is not understood is left as it is, with a warning; with `mode` REQUIRED that ends the build.
        """
        if mode == NEVER:
            return
        try:
            self._grow()
        except NotUnderstood as exc:
            if mode == REQUIRED:
                raise
            log.write(log.Level.WARNING, f"volume {self.volume} was not grown on the inside: {exc}")

    def areas(self) -> list[Area]:
        """The file systems on the disk whose nodes the sandbox has; none when the table is not understood."""
        if self._unknown:
            log.write(log.Level.WARNING, f"volume {self.volume}: {self._unknown}")
            return []
        places = [(None, self._node)] if self._table is None else list(self._nodes().items())
        found = [(number, node, filesystem.probe(node)) for number, node in places]
        return [Area(number, *probed, node) for number, node, probed in found if probed]

    def content(self, area: Area) -> FileSystem:
        """An area as the thing that Volume.mount() mounts."""
        return FileSystem(area.kind, area.identifier, None, area.node, area.number)

    def _grow(self) -> None:
        if self._unknown:
            raise self._unknown
        if self._table is None:
            self._grow_file_system(self._node, self._kind_of(None))
            return
        grown = self._table.grown()
        if grown is None:
            return
        kind = self._kind_of(grown.last)
        write_last(self._node, grown)
        self._table = grown
        size = f"{grown.last.size_bytes // 1024**2} MiB"
        log.write(log.Level.INFO, f"volume {self.volume}: partition {grown.last.number} has {size} now")
        self._grow_file_system(self._nodes()[grown.last.number], kind)

    def _kind_of(self, part: Partition | None) -> str:
        """The file system to grow, found before anything is changed. Raises NotUnderstood for others."""
        place = (part.start_bytes, self._size_of(part)) if part else (0, None)
        found = filesystem.probe(self._node, *place)
        if found is None:
            raise NotUnderstood("there is no known file system at its end")
        if found[0] not in (*EXT, *GROWN_BY_GUEST):
            raise NotUnderstood(f"at its end is {found[0]}, which cannot be grown here")
        return found[0]

    def _size_of(self, part: Partition) -> int:
        assert self._table is not None
        return next(old.size_bytes for old in self._table.partitions if old.number == part.number)

    def _nodes(self) -> dict[int, str]:
        """The partitions' nodes; the kernel is told of them the first time. Raises NotUnderstood."""
        if self._table is not None and not self.volume.partition_nodes:
            try:
                self.volume.use_partitions(self._table.partitions)
            except BrokerError as exc:
                raise NotUnderstood(f"the kernel does not take its partitions: {exc}") from exc
        return self.volume.partition_nodes

    def _grow_file_system(self, node: str, kind: str) -> None:
        if kind in GROWN_BY_GUEST:
            raise NotUnderstood(f"{kind} grows only while it is mounted: the guest does it, by cloud-init")
        grow_ext(node)
        log.write(log.Level.INFO, f"volume {self.volume}: {kind} fills {node} now")


def grow_ext(node: str) -> None:
    """Let an ext2, ext3 or ext4 that nobody has mounted fill its device.

    One that e2fsck cannot put right without asking, or resize2fs does not take, is left alone: NotUnderstood.
    Raises ProvisioningError when resizing has damaged it.
    """
    check = ["e2fsck", "-f", "-p", node]
    try:
        run(check, ok=_CHECKED, timeout_s=_CHECK_TIMEOUT_S)
    except CommandFailed as exc:
        raise NotUnderstood(f"its file system has errors: {exc}") from exc
    try:
        run(["resize2fs", node], timeout_s=_RESIZE_TIMEOUT_S)
    except CommandFailed as exc:
        try:
            run(check, ok=_CHECKED, timeout_s=_CHECK_TIMEOUT_S)
        except CommandFailed as damage:
            raise ProvisioningError(f"growing the file system on {node} has damaged it: {exc}") from damage
        raise NotUnderstood(f"resize2fs does not grow it: {exc}") from exc
