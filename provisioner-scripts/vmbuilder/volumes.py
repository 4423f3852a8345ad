"""The volumes of the VM being built.

A volume is made or cloned, mapped (then it is the block device /dev/rbd/POOL/VOLUME), formatted, mounted; and
in reverse. Creating and mapping, and mounting with the kernel's help, are the broker's; partition tables and
file systems are made right here. Whatever is still mounted or mapped when the build ends, the worker takes
away.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, overload

from vmbuilder import chroot, filesystem, log, partitions
from vmbuilder.context import PlanVolume
from vmbuilder.errors import BrokerError, ProvisioningError, ValidationError

Request = Callable[..., dict[str, Any]]

SWAP: Final = "swap"
BUSY: Final = "busy-retry"
_BUSY_WAITS_S: Final = (0.1, 0.5, 2.0)


@dataclass(frozen=True)
class FileSystem:
    """A file system on a volume or one of its partitions. `mountpoint` None: none, or swap."""

    kind: str
    identifier: str
    mountpoint: str | None
    node: str
    partition: int | None = None


class Volume:
    """One disk of the VM. The attributes of its plan are here, too: pool, volume, disk_id, size_bytes, …"""

    def __init__(self, plan: PlanVolume, request: Request) -> None:
        self.plan = plan
        self.pool, self.name, self.disk_id = plan.pool, plan.volume, plan.disk_id
        self.size_bytes, self.mountpoint, self.filesystem = plan.size_bytes, plan.mountpoint, plan.filesystem
        self.source_volume = plan.source_volume
        self.node: str | None = None
        self.layout: tuple[partitions.Partition, ...] = ()
        self.partition_nodes: dict[int, str] = {}
        self.content: FileSystem | None = None
        self._request = request

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"

    @property
    def device(self) -> str:
        """The path under which a mapped volume is found."""
        return f"/dev/rbd/{self.pool}/{self.name}"

    @property
    def is_root(self) -> bool:
        """Whether the plan puts the root file system here."""
        return self.mountpoint == "/"

    def create(self) -> None:
        """Create the volume, or clone its source when the plan names one."""
        verb = "volume.clone" if self.source_volume else "volume.create"
        self.size_bytes = self._ask(verb).get("size_bytes") or self.size_bytes

    def map(self) -> None:
        """Make it a block device."""
        if self.node is None:
            self.node = str(self._ask("volume.map").get("node") or self.device)

    def unmap(self) -> None:
        """Undo map(); a volume that is not mapped stays so."""
        if self.node is not None:
            self._ask("volume.unmap")
            self.node, self.partition_nodes = None, {}

    def partition(self, scheme: partitions.Scheme = partitions.LINUX) -> None:
        """Write the root disk's partition table and make its partitions known; see vmbuilder.partitions."""
        layout = partitions.root_disk_layout(device_size_bytes(self.mapped_node()), scheme)
        partitions.write_table(self.mapped_node(), layout, scheme)
        self.use_partitions(layout)

    def use_partitions(self, layout: Sequence[partitions.Partition]) -> None:
        """Have the kernel know the partitions of a table that is on the volume; they get their nodes."""
        self.layout = tuple(layout)
        reply = self._ask("volume.partitions", partitions=[part.as_request() for part in self.layout])
        nodes = [str(node) for node in reply.get("nodes") or ()]
        if len(nodes) != len(self.layout):
            raise ProvisioningError(
                f"volume {self}: expected {len(self.layout)} partitions, got {len(nodes)}"
            )
        self.partition_nodes = {part.number: node for part, node in zip(self.layout, nodes, strict=True)}

    def format(self) -> None:
        """Make the file system of the plan: on the root partition if there is one, else on the whole volume.

        A clone keeps what it has; that is looked up.
        """
        number = partitions.ROOT if self.partition_nodes else None
        node = self.partition_nodes[number] if number is not None else self.mapped_node()
        if self.source_volume:
            found = filesystem.probe(node)
        elif self.filesystem is not None:
            identifier = filesystem.make(self.filesystem, node, self.plan.filesystem_args)
            found = (self.filesystem, identifier)
        else:
            found = None
        if found is None:
            return
        kind, identifier = found
        mountpoint = None if kind == SWAP else self.mountpoint
        self.content = FileSystem(kind, identifier, mountpoint, node, number)
        self._ask("device.link", partition=number, uuid=identifier)

    def mount(self, path: str, *, read_only: bool = False) -> None:
        """Mount the volume's file system at an absolute path of the sandbox."""
        if self.content is None:
            raise ProvisioningError(f"volume {self} has no file system to mount")
        self._ask(
            "volume.mount",
            partition=self.content.partition,
            path=path,
            filesystem=filesystem.driver_of(self.content.kind),
            read_only=read_only,
        )

    def mapped_node(self) -> str:
        """The kernel's own name of the device, like /dev/loop3. Raises ProvisioningError when not mapped."""
        if self.node is None:
            raise ProvisioningError(f"volume {self} is not mapped")
        return self.node

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        return self._request(verb, pool=self.pool, volume=self.name, **arguments)


class Volumes(Sequence[Volume]):
    """All volumes of the VM, in the plan's order, with the steps most builders take for all of them.

    setup      check()
    prepare    create(); format(); mount("/tmp/target")
    install    fill /tmp/target
    cleanup    release()
    """

    def __init__(self, plan: Sequence[PlanVolume], request: Request) -> None:
        self._volumes = tuple(Volume(item, request) for item in plan)
        self._request = request
        self._mounted: list[str] = []

    @overload
    def __getitem__(self, index: int) -> Volume: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Volume]: ...
    def __getitem__(self, index: int | slice) -> Volume | Sequence[Volume]:
        return self._volumes[index]

    def __len__(self) -> int:
        return len(self._volumes)

    def __iter__(self) -> Iterator[Volume]:
        return iter(self._volumes)

    @property
    def root(self) -> Volume:
        """The volume whose mount point is "/"."""
        for volume in self._volumes:
            if volume.is_root:
                return volume
        raise ValidationError("the storage template has no disk with the mount point /")

    def check(self) -> None:
        """Raise ValidationError for everything in the plan that this package cannot build, all at once."""
        problems = [problem for volume in self._volumes for problem in _problems(volume)]
        places = [
            volume.mountpoint for volume in self._volumes if volume.mountpoint and volume.filesystem != SWAP
        ]
        problems += [
            f"two disks have the mount point {path}" for path in sorted(set(places)) if places.count(path) > 1
        ]
        kinds = [volume.filesystem for volume in self._volumes if volume.filesystem in filesystem.KINDS]
        missing = filesystem.missing_programs([kind for kind in kinds if kind])
        problems += [f"{program} is not installed on this node" for program in missing]
        if problems:
            raise ValidationError("; ".join(problems))

    def check_root(self) -> None:
        """Raise ValidationError unless there is a new root disk with a file system that can hold a root."""
        root = self.root
        if root.source_volume:
            raise ValidationError(
                f"disk {root.disk_id}: a root disk that is installed anew cannot be a clone"
            )
        if root.filesystem in (None, SWAP, "vfat"):
            raise ValidationError(f"disk {root.disk_id}: a root disk needs a file system such as ext4")
        if root.size_bytes:
            partitions.root_disk_layout(root.size_bytes)

    def create(self) -> None:
        """Create (or clone) and map every volume."""
        for volume in self._volumes:
            volume.create()
            volume.map()

    def format(self, *, partition_root: bool = True) -> None:
        """Make every file system of the plan; the root disk gets its partition table first."""
        for volume in self._volumes:
            if volume.is_root and partition_root and not volume.source_volume:
                volume.partition()
            volume.format()

    def mount(self, root: str) -> None:
        """Mount all file systems that have a mount point below `root`, outer ones first."""
        for volume in self.in_mount_order():
            assert volume.mountpoint is not None
            self.mount_one(volume, str(PurePosixPath(root, volume.mountpoint.lstrip("/"))))

    def mount_one(self, volume: Volume, path: str) -> None:
        """Mount the file system of one volume at `path`; unmount() and release() know of it."""
        volume.mount(path)
        self._mounted.append(path)

    def in_mount_order(self) -> list[Volume]:
        """The volumes to mount, so that each mount point exists when its turn comes."""
        mountable = [volume for volume in self._volumes if volume.content and volume.content.mountpoint]
        return sorted(mountable, key=lambda volume: mount_order(volume.mountpoint or ""))

    def unmount(self) -> None:
        """Unmount in reverse order what mount() mounted."""
        while self._mounted:
            self._unmount(self._mounted[-1])
            self._mounted.pop()

    def _unmount(self, path: str) -> None:
        """Unmount; what still has files open there is ended, and the kernel given a moment to notice."""
        for wait_s in _BUSY_WAITS_S:
            try:
                self._request("volume.unmount", path=path)
                return
            except BrokerError as exc:
                if exc.kind != BUSY:
                    raise
                log.write(
                    log.Level.WARNING, f"{exc}; ended processes: {chroot.end_processes(path) or 'none'}"
                )
                time.sleep(wait_s)
        self._request("volume.unmount", path=path)

    def unmap(self) -> None:
        """Unmap every volume."""
        for volume in reversed(self._volumes):
            volume.unmap()

    def release(self) -> None:
        """Unmount and unmap what is mounted and mapped; nothing to do is fine. For cleanup()."""
        self.unmount()
        self.unmap()

    def file_systems(self) -> list[FileSystem]:
        """Every file system and swap area made or found, in fstab order: mount points, then swap."""
        found = [volume.content for volume in self._volumes if volume.content]
        wanted = [item for item in found if item.mountpoint or item.kind == SWAP]
        return sorted(wanted, key=lambda item: (item.kind == SWAP, mount_order(item.mountpoint or "")))

    def packages(self) -> tuple[str, ...]:
        """The packages a Debian-like guest needs to check these file systems, without duplicates."""
        names = {
            filesystem.kind_of(volume.filesystem).package for volume in self._volumes if volume.filesystem
        }
        return tuple(sorted(names - {"util-linux"}))


def mount_order(mountpoint: str) -> tuple[int, str]:
    """Sort key: outer mount points before those inside them."""
    return len(PurePosixPath(mountpoint).parts), mountpoint


def device_size_bytes(node: str) -> int:
    """Size of a block device."""
    descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def _problems(volume: Volume) -> list[str]:
    where = f"disk {volume.disk_id}"
    problems = []
    if volume.filesystem is not None and volume.filesystem not in filesystem.KINDS:
        problems.append(
            f"{where}: file system {volume.filesystem} is not one of {', '.join(filesystem.KINDS)}"
        )
    path = volume.mountpoint
    if path and volume.filesystem != SWAP:
        if not volume.filesystem and not volume.source_volume:
            problems.append(f"{where}: mount point {path} without a file system")
        if not path.startswith("/") or ".." in PurePosixPath(path).parts:
            problems.append(f"{where}: mount point {path} must be an absolute path")
    return problems
