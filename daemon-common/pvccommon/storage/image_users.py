"""Who has an RBD image open, so that there is one writer, or several readers.

Ceph keeps a list of the clients that watch an image: whoever has it open for writing (QEMU always has) is on
it, and is taken off when it closes the image, when it is fenced, or about 30 s after it has died. What that
list does not tell, we note as attributes of the image's header: which client only reads, and which process it
belongs to. So a client whose process is dead on this host is fenced and forgotten at once.

Looking and opening are one step under a short lock on the header (`turn`); a dead process' is broken.
"""

import json
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pvccommon.errors import Busy, EnvironmentFault, NotFound, PvcError
from pvccommon.storage.ceph import CephCluster, ceph_errors
from pvccommon.storage.faults import in_use

LOCK = "pvc"
LOCK_S = 20  # the cluster drops the lock of a process that died on another host
LOCK_TIMEOUT_S = 25.0
FENCE_TIMEOUT_S = 5.0
ATTRIBUTE = "pvc.user."
TURN_ATTRIBUTE = "pvc.turn"
CLIENT_ENTITY = 8  # CEPH_ENTITY_TYPE_CLIENT, ceph: src/include/msgr.h
READER, WRITER = "r", "w"


_taken_for_dead: set[str] = set()


def take_for_dead(process: str) -> None:
    """A process (`ProcessIdentity.text`) of another host has lost its rights: we may fence its clients."""
    _taken_for_dead.add(process)


@contextmanager
def taken_for_dead(process: str) -> Iterator[None]:
    """The same for a while: it may come back, with connections that are not fenced."""
    is_new = process not in _taken_for_dead
    _taken_for_dead.add(process)
    try:
        yield
    finally:
        if is_new:
            _taken_for_dead.discard(process)


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, beyond doubt: a pid is used again, together with start time and boot it is not."""

    boot: str
    pid: int
    ticks: int

    @classmethod
    def current(cls) -> "ProcessIdentity":
        return cls(_boot(), int(Path("/proc/self").readlink().name), _ticks("self") or 0)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host since its last boot."""
        return self.boot == _boot()

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be dead; of another host only what `take_for_dead` was told is known."""
        return self.text in _taken_for_dead or (self.is_here and _ticks(str(self.pid)) != self.ticks)

    @property
    def text(self) -> str:
        return f"{self.boot}-{self.pid}-{self.ticks}"

    @classmethod
    def parse(cls, text: str) -> "ProcessIdentity | None":
        boot, _, rest = text.partition("-")
        pid, _, ticks = rest.partition("-")
        return cls(boot, int(pid), int(ticks)) if pid.isdigit() and ticks.isdigit() else None


@dataclass(frozen=True)
class Watcher:
    """A client that has an image open."""

    id: int
    address: str


class ImageUsers:
    """The users of the images of one pool."""

    def __init__(self, cluster: CephCluster, pool: str) -> None:
        self._cluster = cluster
        self._ioctx = cluster.pool(pool)

    @contextmanager
    def turn(self, image_id: str, what: str) -> Iterator[None]:
        """For a moment, nobody else opens or changes the image. Raises Busy, NotFound."""
        header, cookie = _header(image_id), secrets.token_hex(8)
        self._take_turn(header, cookie, what)
        try:
            self._refuse_missing(image_id, header, what)
            yield
        finally:
            # Gone with the image, or dropped by the cluster because we were too slow.
            with suppress(NotFound), ceph_errors(what):
                self._ioctx.unlock(header, LOCK, cookie)

    def refuse_users(self, image_id: str, what: str, *, readers_may: bool = False) -> None:
        """Raises Busy while somebody has the image open (in a way that matters). Call it in a `turn`."""
        with self._cluster.lock:
            held = list(self._cluster.held.get(image_id, ()))
        if WRITER in held or (held and not readers_may):
            raise in_use(what)
        notes = self._living_notes(image_id, what)
        for watcher in self.watchers(image_id, what):
            modes = {note.mode for note in notes if note.client == watcher.id}
            if not (readers_may and modes == {READER}):
                raise in_use(what)

    def refuse_noted(self, image_id: str, what: str, *, readers_may: bool = False) -> None:
        """Raises Busy while one of us has the image open; a running domain is not one of us."""
        with self._cluster.lock:
            modes = list(self._cluster.held.get(image_id, ()))
        modes += [note.mode for note in self._living_notes(image_id, what)]
        if WRITER in modes or (modes and not readers_may):
            raise in_use(what)

    def fence(self, clients: Sequence[Watcher]) -> None:
        """End what a client that hangs could still do. Of several nobody knows which is the one: none."""
        if len(clients) == 1:
            with suppress(PvcError):
                self._cluster.fence(clients[0].address)

    def is_abandoned(self, image_id: str, client: int) -> bool:
        """Whether a client is noted as that of a process of this host that is dead."""
        notes = self._notes(image_id, f"look at image {image_id}")
        return any(note.client == client and note.is_dead for _, note in notes)

    def watchers(self, image_id: str, what: str) -> list[Watcher]:
        """The clients that have the image open, without ourselves."""
        import rbd

        with ceph_errors(what), rbd.Image(self._ioctx, image_id=image_id, read_only=True) as image:
            found = [Watcher(int(watcher["id"]), str(watcher["addr"])) for watcher in image.watchers_list()]
        return [watcher for watcher in found if watcher.id != self._cluster.client_id]

    @contextmanager
    def holding(self, image_id: str, mode: str) -> Iterator[None]:
        """This process has the image open itself, until the context ends."""
        me = Watcher(self._cluster.client_id, self._cluster.address)
        with self._cluster.lock:
            self._cluster.held.setdefault(image_id, []).append(mode)
        try:
            with self.noted(image_id, me, mode):
                yield
        finally:
            with self._cluster.lock:
                self._cluster.held[image_id].remove(mode)
                if not self._cluster.held[image_id]:
                    del self._cluster.held[image_id]

    @contextmanager
    def noted(self, image_id: str, client: Watcher, mode: str) -> Iterator[None]:
        """Note on the image that a client (ours, or of a program of ours) has it open."""
        what = f"note a user of image {image_id}"
        note = _Note(client.id, client.address, mode, ProcessIdentity.current().text)
        name = f"{ATTRIBUTE}{client.id}.{secrets.token_hex(4)}"
        with ceph_errors(what):
            self._ioctx.set_xattr(_header(image_id), name, json.dumps(asdict(note)).encode())
        try:
            yield
        finally:
            # A note whose client is no watcher any more counts for nothing.
            with suppress(NotFound), ceph_errors(what):
                self._ioctx.rm_xattr(_header(image_id), name)

    def _living_notes(self, image_id: str, what: str) -> list["_Note"]:
        """Notes of clients that are there; those of dead processes of this host are fenced and forgotten."""
        watchers = {watcher.id for watcher in self.watchers(image_id, what)}
        living = []
        for name, note in self._notes(image_id, what):
            if note.client == self._cluster.client_id:
                continue  # `held` knows better
            if note.client in watchers and not note.is_dead:
                living.append(note)
                continue
            if note.client in watchers:
                self._fence(image_id, note, what)
            with suppress(NotFound), ceph_errors(what):
                self._ioctx.rm_xattr(_header(image_id), name)
        return living

    def _notes(self, image_id: str, what: str) -> list[tuple[str, "_Note"]]:
        with ceph_errors(what):
            found = list(self._ioctx.get_xattrs(_header(image_id)))
        return [(name, _Note(**json.loads(value))) for name, value in found if name.startswith(ATTRIBUTE)]

    def _fence(self, image_id: str, note: "_Note", what: str) -> None:
        self._cluster.fence(note.address)
        deadline = time.monotonic() + FENCE_TIMEOUT_S
        while any(watcher.id == note.client for watcher in self.watchers(image_id, what)):
            if time.monotonic() > deadline:
                return  # it counts as a user, so the caller answers Busy
            time.sleep(0.02)

    def _take_turn(self, header: str, cookie: str, what: str) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                with ceph_errors(what):
                    self._ioctx.lock_exclusive(header, LOCK, cookie, "", LOCK_S)
                    turn = _Turn(self._cluster.client_id, cookie, ProcessIdentity.current().text)
                    self._ioctx.set_xattr(header, TURN_ATTRIBUTE, json.dumps(asdict(turn)).encode())
                return
            except Busy:
                if time.monotonic() > deadline:
                    raise
                self._break_dead_turn(header, what)
                time.sleep(0.01)

    def _break_dead_turn(self, header: str, what: str) -> None:
        """Take the lock from a process of this host that is dead; harmless when it is not the holder's."""
        try:
            with ceph_errors(what):
                turn = _Turn(**json.loads(self._ioctx.get_xattr(header, TURN_ATTRIBUTE)))
                if turn.is_dead:
                    self._ioctx.execute(header, "lock", "break_lock", _break_lock(turn.client, turn.cookie))
        except (NotFound, EnvironmentFault):
            return  # nobody has noted himself, or it is gone

    def _refuse_missing(self, image_id: str, header: str, what: str) -> None:
        """A lock makes the object it is on: one of an image that has just gone is taken away again."""
        import rbd

        try:
            rbd.Image(self._ioctx, image_id=image_id, read_only=True).close()
        except rbd.ImageNotFound as exc:
            with suppress(NotFound), ceph_errors(what):
                self._ioctx.remove_object(header)
            raise NotFound(what, "it was removed at the same time") from exc


@dataclass(frozen=True)
class _Note:
    """What is written on an image about one of its users."""

    client: int
    address: str
    mode: str
    process: str

    @property
    def is_dead(self) -> bool:
        return _is_dead(self.process)


@dataclass(frozen=True)
class _Turn:
    """Who has the lock, or had it last."""

    client: int
    cookie: str
    process: str

    @property
    def is_dead(self) -> bool:
        return _is_dead(self.process)


def _is_dead(process: str) -> bool:
    identity = ProcessIdentity.parse(process)
    return identity is not None and identity.is_dead


def _break_lock(client: int, cookie: str) -> bytes:
    """cls_lock_break_op of ceph's src/cls/lock/cls_lock_ops.h, for which Python's binding has no call."""

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    body = text(LOCK) + struct.pack("<Bq", CLIENT_ENTITY, client) + text(cookie)
    return struct.pack("<BBI", 1, 1, len(body)) + body


def _header(image_id: str) -> str:
    return f"rbd_header.{image_id}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def _ticks(pid: str) -> int | None:
    """Start time of a process, proc(5) field 22; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
