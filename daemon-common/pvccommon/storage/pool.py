"""The interface of a storage pool, and what its operations return.

Every driver behaves the same way; tests/contract/storage holds the rules as tests. The rules that are not
obvious follow Ceph RBD, the strictest driver: a snapshot must be protected before it is cloned, and a
protected snapshot, or one with clones, cannot go away.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from pvccommon.errors import NoSpace, NotFound, PvcError, WrongInput
from pvccommon.names import VOLUME_NAME
from pvccommon.storage.faults import FREE_SPACE

Format = Literal["raw", "qcow2"]

SECTOR_BYTES = 512
FULL_BYTES = 16 * 1024**2  # with less free than this, a write that fails, or is not answered, lacks space
# No "@", "/" or leading "-" or ".": names stand in paths, in argv, and in "volume@snapshot".
NAME = VOLUME_NAME


@dataclass(frozen=True)
class Volume:
    """`used_bytes` is what the volume itself occupies, without what it shares with its parent.

    `parent` is the snapshot it was cloned from ("golden@base"), None when it stands alone. `changed` is when
    it was made, or, where a pool cannot tell, last given a snapshot or another file; seconds since the epoch.
    """

    pool: str
    name: str
    size_bytes: int
    used_bytes: int
    parent: str | None
    format: Format
    changed: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Leftover:
    """Something a process that has ended left behind, which `StoragePool.sweep` could not remove.

    `name` is the pool's own: of a hidden file or image, "volume@snapshot", or a device of this host.
    """

    kind: Literal["volume", "snapshot", "mapping"]
    name: str
    why: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """`children` are the volumes cloned from it, in this pool.

    `used_bytes` is what it keeps that was written since the snapshot before it.
    """

    pool: str
    volume: str
    name: str
    size_bytes: int
    created: float  # seconds since the epoch
    protected: bool
    children: tuple[str, ...] = ()
    used_bytes: int = 0

    @property
    def full_name(self) -> str:
        return snapshot_name(self.volume, self.name)


@dataclass(frozen=True)
class PoolSpace:
    """`free_bytes` is what can still be written; reserved blocks are neither used nor free."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class PoolStatistics:
    """What a pool tells of itself. Without a cluster behind it, what only that counts is 0.

    `stored_bytes` is what was written, `used_bytes` what it takes with all its copies; `used_percent` is a
    fraction. `pgs` and `tier`: placement groups, and the class of its disks.
    """

    stored_bytes: int
    used_bytes: int
    free_bytes: int
    used_percent: float
    tier: str = "default"
    pgs: int = 0
    id: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    read_ops: int = 0
    write_ops: int = 0
    num_objects: int = 0
    num_object_clones: int = 0
    num_object_copies: int = 0
    num_objects_degraded: int = 0


@dataclass(frozen=True)
class BlockDevice:
    """A volume as a block device; `fd` is open on the whole device for as long as the context lives."""

    path: str
    name: str
    major: int
    minor: int
    fd: int = field(compare=False)


@dataclass(frozen=True)
class BackingFile:
    """One file below a copy-on-write file."""

    path: str
    format: Format


@dataclass(frozen=True)
class DiskSource:
    """What the <disk> of a domain needs; the node daemon renders it.

    type "file": `path`, and `backing` from the top down, to be written as <backingStore> so that nobody
    probes for it. type "network": `protocol` and `path` ("pool/volume"), `hosts` as (name, port), `secret`
    the name of the libvirt secret and `user` its account. Ask again after every operation that changes the
    volume (snapshot, rollback, clone, flatten, rename): path and format may be others then.
    """

    type: Literal["file", "network"]
    path: str
    format: Format
    backing: tuple[BackingFile, ...] = ()
    protocol: str | None = None
    hosts: tuple[tuple[str, int], ...] = ()
    user: str | None = None
    secret: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolSecret:
    """What libvirt must know to open the pool's network disks: `name` is what `DiskSource.secret` refers to.

    `usage` tells an administrator what it is; `value` belongs in no file and no log.
    """

    name: str
    usage: str
    value: bytes = field(repr=False)


class ByteSource(Protocol):
    """Something to read a volume's content from; an open binary file or a request's body."""

    def read(self, size: int, /) -> bytes: ...


class VolumeWriter(Protocol):
    """Takes the content of a new volume. Pieces may come in any order."""

    def write(self, offset: int, data: bytes, /) -> None:
        """Raises WrongInput for a piece that is not within the volume."""


class StoragePool(ABC):
    """Volumes of one pool. Sizes are whole bytes; sizes given are rounded up to whole sectors (512).

    Every operation checks the names it gets (WrongInput), finds its volume or raises NotFound, either
    happens as a whole or leaves nothing, and may run in several processes at once. Busy means the volume
    is open somewhere (a device, a running domain, a copy) and trying again later may help; NoSpace that
    the pool is full; EnvironmentFault that the pool cannot be reached.
    """

    driver: ClassVar[str]
    shared: ClassVar[bool]  # whether every node that has the pool sees the same volumes
    # How a volume is cut into objects (of 2^order bytes), and what its format can do; 0 and none of files.
    object_order: ClassVar[int] = 0
    features: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    # ---- volumes

    @abstractmethod
    def create_volume(self, name: str, size_bytes: int) -> Volume:
        """Make a volume that reads as zeros. Raises Exists; WrongInput for a size over the pool's limit."""

    @abstractmethod
    def clone_volume(self, source: str, name: str, *, size_bytes: int | None = None) -> Volume:
        """Make a copy-on-write clone of the volume as it is now; both go their own ways afterwards.

        `size_bytes` may grow the clone. The source can be deleted while the clone lives. Raises Busy while
        the source is open.
        """

    @abstractmethod
    def delete_volume(self, name: str, *, missing_ok: bool = False) -> None:
        """Delete the volume and its snapshots. Safe to repeat with `missing_ok`.

        Raises Busy while it is open, WrongState while a snapshot is protected (the error lists the clones).
        """

    @abstractmethod
    def rename_volume(self, name: str, new_name: str) -> Volume:
        """Give the volume another name; snapshots go with it, clones do not notice. Raises Exists, Busy."""

    @abstractmethod
    def resize_volume(self, name: str, size_bytes: int) -> Volume:
        """Grow the volume; the new part reads as zeros. Raises WrongInput for less, Busy while open."""

    @abstractmethod
    def flatten_volume(self, name: str) -> Volume:
        """Copy what the volume shares with its parent, so that it stands alone. Safe to repeat. Raises Busy.

        Takes as long as copying takes.
        """

    @abstractmethod
    def list_volumes(self) -> list[Volume]:
        """All volumes, by name."""

    @abstractmethod
    def volume_or_none(self, name: str) -> Volume | None:
        """The volume, or None when there is none of this name; not knowing is an error."""

    def stat_volume(self, name: str) -> Volume:
        """The volume; raises NotFound."""
        volume = self.volume_or_none(name)
        if volume is None:
            raise self._no_volume("find", name)
        return volume

    # ---- snapshots

    @abstractmethod
    def create_snapshot(self, volume: str, snapshot: str) -> Snapshot:
        """Keep the volume's content of now under a name.

        Raises Exists; Busy while the volume is open, if the driver cannot do it then.
        """

    @abstractmethod
    def list_snapshots(self, volume: str) -> list[Snapshot]:
        """Snapshots of a volume, oldest first."""

    @abstractmethod
    def delete_snapshot(self, volume: str, snapshot: str, *, missing_ok: bool = False) -> None:
        """Forget a snapshot. Raises WrongState while it is protected. Safe to repeat with `missing_ok`."""

    @abstractmethod
    def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> Snapshot:
        """Give a snapshot another name. Raises Exists."""

    @abstractmethod
    def protect_snapshot(self, volume: str, snapshot: str) -> None:
        """Allow clones of the snapshot and refuse its deletion. Safe to repeat."""

    @abstractmethod
    def unprotect_snapshot(self, volume: str, snapshot: str) -> None:
        """Undo `protect_snapshot`. Raises WrongState listing the clones, if there are any. Safe to repeat."""

    @abstractmethod
    def clone_snapshot(
        self, volume: str, snapshot: str, name: str, *, size_bytes: int | None = None
    ) -> Volume:
        """Make a copy-on-write clone of a protected snapshot; `size_bytes` may grow it.

        Raises Exists; WrongState when the snapshot is not protected.
        """

    @abstractmethod
    def rollback_snapshot(self, volume: str, snapshot: str) -> Volume:
        """Give the volume the content of its snapshot again; what was written since is lost. Raises Busy."""

    def stat_snapshot(self, volume: str, snapshot: str) -> Snapshot:
        """One snapshot; raises NotFound."""
        for found in self.list_snapshots(volume):
            if found.name == snapshot:
                return found
        raise self._no_snapshot("find", volume, snapshot)

    # ---- the pool

    @abstractmethod
    def space(self) -> PoolSpace:
        """How full the pool is, without what is promised to sparse volumes."""

    def statistics(self) -> PoolStatistics:
        """How full the pool is, and what it has done so far."""
        space = self.space()
        part = space.used_bytes / (space.used_bytes + space.free_bytes or 1)
        return PoolStatistics(space.used_bytes, space.used_bytes, space.free_bytes, round(part, 6))

    def count_volumes(self) -> int:
        return len(self.list_volumes())

    def sweep(self) -> list[str]:
        """Remove what processes that were killed left half made; says what. Safe at any time."""
        return []

    @abstractmethod
    def leftovers(self) -> list[Leftover]:
        """What is left half made in the pool, after one more `sweep`."""

    @abstractmethod
    def left_mappings(self) -> list[Leftover]:
        """Devices of this host whose processes are dead, and which something else keeps."""

    def remove_leftover(self, kind: str, name: str) -> None:
        """Remove one of `leftovers` or `left_mappings`, or say why that cannot be done.

        Looks once more: raises NotFound when it is none any more.
        """
        found = self.left_mappings() if kind == "mapping" else self.leftovers()
        for leftover in found:
            if (leftover.kind, leftover.name) == (kind, name):
                return self._remove_leftover(leftover)
        raise NotFound(f"remove {kind} {self.describe(name)}", "it is gone, or in use again")

    @abstractmethod
    def _remove_leftover(self, leftover: Leftover) -> None:
        """Remove something that was seen a moment ago; raises what stands against it."""

    # ---- content

    @abstractmethod
    def open_device(self, name: str, *, read_only: bool = False) -> AbstractContextManager[BlockDevice]:
        """The volume as a block device, for this caller alone (several may read at one time).

        What was written is on stable storage when the context ends without error. The device goes with the
        context or with the process, however that ends. Raises Busy when the volume is open elsewhere, and
        at the end when something (a mount, a partition in use) still holds the device.
        """

    @abstractmethod
    def is_open(self, name: str) -> bool:
        """Whether somebody has the volume open: a device, a running domain, a copy. Raises NotFound."""

    @abstractmethod
    def mapping(self) -> str:
        """How `open_device` makes devices: `loop`, `export` or `kernel`."""

    @abstractmethod
    def disk_source(self, name: str, *, read_only: bool = False) -> DiskSource:
        """What a domain needs to use the volume as a disk, or with `read_only` as a CD-ROM.

        Raises Busy while the volume is open and nothing else would keep the domain from it; readers share.
        """

    def identity(self) -> str | None:
        """Equal for pools of two nodes that have the same volumes; None for one of its node alone."""
        return None

    def client(self) -> str | None:
        """What `fence` must be told to keep this process from the pool; None where no other node could."""
        return None

    def fence(self, client: str) -> None:
        """Let nothing of a client arrive any more, and take its process for dead. Safe to repeat.

        For the process of another node that has lost its rights; a living one can connect anew.
        """

    @contextmanager
    def expelled(self, client: str) -> Iterator[None]:
        """A client of another node that is lost and may come back: fenced, what it has half made removed.

        Within the context what it had open counts as closed; afterwards its process may connect anew. Safe
        to repeat.
        """
        self.fence(client)
        yield

    def secret(self) -> PoolSecret | None:
        """What libvirt must be told before a domain with a disk of this pool starts."""
        return None

    @abstractmethod
    def write_volume(self, name: str, size_bytes: int) -> AbstractContextManager[VolumeWriter]:
        """Make a volume whose content comes in pieces; what is not written reads as zeros.

        The volume is there when the context ends without error, and never half written. Raises Exists.
        """

    @abstractmethod
    def import_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        """Make a volume from exactly `size_bytes` of raw content; blocks of zeros take no space.

        Memory use is bounded. Raises Exists, WrongInput when the stream is shorter or longer.
        """

    @abstractmethod
    def write_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        """Overwrite a volume's content in place with exactly `size_bytes` of raw content; the rest reads as
        zeros, and zeros take no space.

        Snapshots keep what they have. When it fails on the way the content is mixed. Raises WrongInput for
        more than fits (nothing is written then) and for a stream of another length, Busy while it is open.
        """

    @abstractmethod
    def export_stream(self, name: str) -> Iterator[bytes]:
        """The whole raw content in pieces of bounded size; writers find the volume busy until the end."""

    def find_full(self, what: str) -> NoSpace | None:
        """The error for a pool without space, which devices do not tell; None when it has some or is mute."""
        try:
            free_bytes = self.space().free_bytes
        except PvcError:
            return None
        return NoSpace(what, f"pool {self.name} is full", FREE_SPACE) if free_bytes < FULL_BYTES else None

    # ---- for drivers

    def describe(self, name: str) -> str:
        """How errors name a volume: "pool/volume"."""
        return f"{self.name}/{name}"

    def _no_volume(self, verb: str, name: str) -> NotFound:
        return NotFound(
            f"{verb} volume {self.describe(name)}", "there is no such volume", "see the pool's volume list"
        )

    def _no_snapshot(self, verb: str, volume: str, snapshot: str) -> NotFound:
        full = snapshot_name(self.describe(volume), snapshot)
        return NotFound(
            f"{verb} snapshot {full}", "there is no such snapshot", "see the volume's snapshot list"
        )


def snapshot_name(volume: str, snapshot: str) -> str:
    """The full name of a snapshot: "volume@snapshot"."""
    return f"{volume}@{snapshot}"


def check_name(name: str, kind: str = "volume") -> str:
    """The name itself; raises WrongInput for one that could be a path, an option or a snapshot."""
    if not NAME.fullmatch(name):
        raise WrongInput(
            f"use {kind} name {name!r}",
            "a name begins with a letter or digit and has letters, digits, '.', '_' and '-', at most 128",
        )
    return name


def check_piece(what: str, offset: int, length: int, size_bytes: int) -> None:
    """Raise WrongInput for a piece of content that is not within a volume of that size."""
    if not 0 <= offset <= size_bytes - length:
        raise WrongInput(what, f"{length} bytes at {offset} are not within its {size_bytes} bytes")


def check_fits(what: str, size_bytes: int, volume_bytes: int) -> None:
    """Raises WrongInput when content is larger than the volume it is for, or nothing."""
    if not 0 < size_bytes <= volume_bytes:
        why = f"{size_bytes} bytes are no content for a volume of {volume_bytes}"
        raise WrongInput(what, why, "resize the volume first")


def check_size(name: str, size_bytes: int, limit_bytes: int) -> int:
    """The size rounded up to whole sectors; raises WrongInput for none, or one over the pool's limit."""
    if size_bytes <= 0:
        raise WrongInput(f"size volume {name}", f"{size_bytes} bytes is not a size")
    if size_bytes > limit_bytes:
        raise WrongInput(
            f"size volume {name}",
            f"{size_bytes} bytes is over the pool's limit of {limit_bytes} bytes",
            "ask for less, or raise storage.max_volume_gib in the configuration",
        )
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
