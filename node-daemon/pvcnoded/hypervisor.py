"""libvirt on this node: domains are defined, started, stopped and looked at here and nowhere else."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import libvirt
from lxml import etree

from pvccommon.errors import EnvironmentFault, Exists, NotFound, TimedOut, WrongState
from pvccommon.storage.pool import PoolSecret
from pvcnoded.console_text import console_lines
from pvcnoded.domain_mark import DomainMark, disk_sources, read_mark

SHUTDOWN_TIMEOUT_S = 180
KEEPALIVE = (5, 3)  # seconds between probes, probes unanswered before the connection counts as lost
STATE_WORDS = {
    libvirt.VIR_DOMAIN_NOSTATE: "unknown",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
# (state, reason): a reboot of a domain that ends with it looks like a power-off.
ENDED_BY_GUEST = ("shutoff", libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
DEAD_ENDS = {
    ("shutoff", libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED): "its domain was stopped from outside",
    ("shutoff", libvirt.VIR_DOMAIN_SHUTOFF_CRASHED): "its QEMU process ended unexpectedly",
    ("paused", libvirt.VIR_DOMAIN_PAUSED_IOERROR): "its disk does not take what it writes; is the pool full?",
    ("crashed", libvirt.VIR_DOMAIN_CRASHED_PANICKED): "its system crashed",
}
UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
PAUSE_S = 0.2
CONSOLE_END_BYTES = 16 * 1024


@dataclass(frozen=True)
class SeenDomain:
    """`sources`: the files and images its disks name, now or at its next start."""

    name: str
    uuid: str
    mark: DomainMark | None
    sources: frozenset[str]


FindSecrets = Callable[[], Sequence[PoolSecret]]
Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")
Method = Callable[Concatenate["Hypervisor", Arguments], Answer]


class LibvirtSilent(EnvironmentFault):
    """libvirtd cannot be reached, or went away in the middle; whether it did what was asked is not known."""


def patiently(method: Method[Arguments, Answer]) -> Method[Arguments, Answer]:
    """Repeat a method while libvirtd is silent, as long as the hypervisor's patience lasts.

    For methods that are safe to repeat, that is, those that ask for a state and not for a change.
    """

    @functools.wraps(method)
    def repeated(self: "Hypervisor", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return method(self, *args, **kwargs)
            except LibvirtSilent:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(PAUSE_S)

    return repeated


class Hypervisor:
    """One connection to libvirt, made when first needed and again after libvirtd was restarted."""

    def __init__(
        self,
        uri: str,
        console_directory: str,
        find_secrets: FindSecrets = lambda: (),
        patience_s: float = 0.0,
    ) -> None:
        """`find_secrets` gives what libvirt must know to open network disks; asked before each start.

        `patience_s`: how long to wait for a libvirtd that is being restarted.
        """
        self._uri = uri
        self.patience_s = patience_s
        self._find_secrets = find_secrets
        self._console_directory = Path(console_directory)
        self._connection: libvirt.virConnect | None = None
        self._lock = threading.Lock()

    def console_path(self, name: str) -> Path:
        """The log of a domain's serial console, written by virtlogd."""
        return self._console_directory / f"{name}-console.log"

    @patiently
    def define(self, name: str, xml: str, *, autostart: bool = False) -> None:
        """Define a domain whose name and UUID are free. Raises EnvironmentFault when libvirt refuses."""
        with self._talking(f"define domain {name}") as connection:
            domain = connection.defineXML(xml)
            domain.setAutostart(autostart)

    @patiently
    def require_free(self, name: str) -> None:
        """Raise Exists when libvirt has a domain of this name, whoever made it."""
        what = f"define domain {name}"
        with self._talking(what) as connection:
            if _lookup(connection, name):
                why = "libvirt has a domain of this name that is none of our VMs"
                raise Exists(what, why, "choose another name, or see: virsh dominfo")

    @patiently
    def redefine(self, name: str, xml: str) -> None:
        """Replace the definition of a domain of the same name and UUID."""
        with self._talking(f"define domain {name}") as connection:
            connection.defineXML(xml)

    @patiently
    def start(self, name: str) -> None:
        """Start a domain; one that runs already is fine. Raises NotFound, EnvironmentFault."""
        with self._talking(f"start domain {name}") as connection:
            domain = self._find(connection, name)
            if not domain.isActive():
                self._define_secrets(connection)
                domain.create()

    def stop(self, name: str) -> None:
        """End a domain at once, as if its power were cut; one that does not run is fine. Raises NotFound."""
        with self._talking(f"stop domain {name}") as connection:
            domain = self._find(connection, name)
            with suppress_codes(libvirt.VIR_ERR_OPERATION_INVALID):
                if domain.isActive():
                    domain.destroy()

    def shutdown(self, name: str, *, wait: bool) -> None:
        """Ask the guest to power off. Raises WrongState (it does not run), TimedOut (waited in vain)."""
        what = f"shut down domain {name}"
        with self._talking(what) as connection:
            domain = self._find(connection, name)
            if not domain.isActive():
                raise WrongState(what, "it does not run")
            domain.shutdown()
        if wait:
            self.wait_shutoff(name)

    def wait_shutoff(self, name: str) -> None:
        """Until a guest that was asked to has powered off. Raises TimedOut."""
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while self.state(name) != "shutoff":
            if time.monotonic() > deadline:
                why = f"the guest did not power off within {SHUTDOWN_TIMEOUT_S} s"
                raise TimedOut(f"shut down domain {name}", why, f"pvc vm stop {name}")
            time.sleep(0.5)

    def wait_ended_by_guest(self, name: str, timeout_s: float, on_wait: Callable[[], None]) -> None:
        """Until the guest of a domain that was started ends it by itself; `on_wait` is called twice a second.

        Raises TimedOut; EnvironmentFault when it ends in another way, or can never end.
        """
        what = f"wait for the guest of domain {name}"
        deadline = time.monotonic() + timeout_s
        while (standing := self._standing(name)) != ENDED_BY_GUEST:
            if standing in DEAD_ENDS:
                raise EnvironmentFault(what, DEAD_ENDS[standing], "see the log of QEMU")
            if standing[0] in ("shutoff", "missing"):
                raise EnvironmentFault(what, f"its domain is {standing[0]}, and not by itself")
            if time.monotonic() > deadline:
                raise TimedOut(what, f"it did not power itself off within {timeout_s:g} s")
            on_wait()
            time.sleep(0.5)

    @patiently
    def undefine(self, name: str, *, uuid: str | None = None) -> None:
        """Stop and undefine a domain and forget its console log; all gone already is fine.

        With `uuid`, a domain of the same name that has another one is somebody else's and stays.
        """
        with self._talking(f"undefine domain {name}") as connection:
            domain = _lookup(connection, name)
            if domain is not None:
                if uuid and domain.UUIDString() != uuid:
                    return
                with suppress_codes(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                    if domain.isActive():
                        domain.destroy()
                with suppress_codes(libvirt.VIR_ERR_NO_DOMAIN):
                    domain.undefineFlags(UNDEFINE_FLAGS)
        for path in self._console_directory.glob(f"{name}-console.log*"):
            path.unlink(missing_ok=True)

    @patiently
    def state(self, name: str) -> str:
        """`running`, `shutoff`, …, or `missing`."""
        with self._talking(f"look at domain {name}") as connection:
            domain = _lookup(connection, name)
            return "missing" if domain is None else STATE_WORDS.get(domain.state()[0], "unknown")

    @patiently
    def _standing(self, name: str) -> tuple[str, int]:
        """The state, and libvirt's code of the reason for it."""
        with self._talking(f"look at domain {name}") as connection:
            domain = _lookup(connection, name)
            if domain is None:
                return "missing", 0
            state, reason = domain.state()
            return STATE_WORDS.get(state, "unknown"), reason

    def states(self) -> dict[str, str]:
        """State of every domain libvirt knows, by name."""
        with self._talking("list domains") as connection:
            found = {}
            for domain in connection.listAllDomains():
                with suppress(libvirt.libvirtError):  # gone between the list and the question
                    found[domain.name()] = STATE_WORDS.get(domain.state()[0], "unknown")
            return found

    @patiently
    def look_at_domains(self) -> list[SeenDomain]:
        """Every domain libvirt knows, with what it says about itself."""
        with self._talking("list domains") as connection:
            found = []
            for domain in connection.listAllDomains():
                with suppress_codes(libvirt.VIR_ERR_NO_DOMAIN):  # gone between the list and the question
                    persistent = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                    sources = disk_sources(domain.XMLDesc()) | disk_sources(persistent)
                    mark = read_mark(persistent)
                    found.append(SeenDomain(domain.name(), domain.UUIDString(), mark, sources))
            return found

    @patiently
    def xml(self, name: str) -> str:
        """The persistent definition."""
        with self._talking(f"read domain {name}") as connection:
            return str(self._find(connection, name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def version(self) -> str:
        with self._talking("ask libvirt for its version") as connection:
            number = connection.getLibVersion()
            return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    def console_tail(self, name: str, lines: int) -> str:
        """The last lines of the serial console's log; empty when nothing was written yet."""
        return read_tail(self.console_path(name), lines)

    def console_end(self, name: str, lines: int) -> list[str]:
        """The last lines of the console that show something, fit to be shown; see `console_text`."""
        data = read_end(self.console_path(name), CONSOLE_END_BYTES)
        return console_lines(data)[-lines:]

    def _define_secrets(self, connection: libvirt.virConnect) -> None:
        """Tell libvirt the pools' secrets; it keeps them in memory, and gives them to nobody but QEMU."""
        for secret in self._find_secrets():
            connection.secretDefineXML(secret_xml(secret)).setValue(secret.value)

    def _find(self, connection: libvirt.virConnect, name: str) -> libvirt.virDomain:
        domain = _lookup(connection, name)
        if domain is None:
            raise NotFound(f"find domain {name}", "libvirt has no such domain", "see: virsh list --all")
        return domain

    @contextmanager
    def _talking(self, what: str) -> Iterator[libvirt.virConnect]:
        try:
            yield self._open()
        except libvirt.libvirtError as exc:
            kind = EnvironmentFault if self._is_connected() else LibvirtSilent
            raise kind(what, exc.get_error_message() or str(exc), "see the log of libvirtd") from exc

    def _is_connected(self) -> bool:
        return self._connection is not None and bool(self._connection.isAlive())

    def _open(self) -> libvirt.virConnect:
        with self._lock:
            if not self._is_connected():
                libvirt.registerErrorHandler(
                    lambda _context, _error: None, None
                )  # errors are raised, not printed
                start_event_loop()
                self._connection = libvirt.open(self._uri)
                self._connection.setKeepAlive(*KEEPALIVE)
            return self._connection


def secret_xml(secret: PoolSecret) -> str:
    """libvirt's document of a secret: ephemeral (in no file) and private (never read back)."""
    root = etree.Element("secret", ephemeral="yes", private="yes")
    etree.SubElement(root, "uuid").text = secret.name
    usage = etree.SubElement(root, "usage", type="ceph")
    etree.SubElement(usage, "name").text = secret.usage
    return etree.tostring(root, encoding="unicode")


_event_loop = threading.Lock()


def start_event_loop() -> None:
    """Run libvirt's event loop in a thread, once for each process: without it keepalive does nothing."""
    if not _event_loop.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def spin() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=spin, name="libvirt events", daemon=True).start()


@contextmanager
def suppress_codes(*codes: int) -> Iterator[None]:
    """Take errors of libvirt for done: a domain may end, or go, by itself between two calls."""
    try:
        yield
    except libvirt.libvirtError as exc:
        if exc.get_error_code() not in codes:
            raise


def _lookup(connection: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    """The domain or None; any answer but "no such domain" raises."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def read_end(path: Path, limit_bytes: int) -> bytes:
    """The end of a file a guest writes; nothing when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit_bytes))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return b""


def read_tail(path: Path, lines: int, limit_bytes: int = 1024 * 1024) -> str:
    """The last lines of a file a guest writes: at most `limit_bytes` are read, bad bytes replaced."""
    text = read_end(path, limit_bytes).decode(errors="replace").replace("\0", "")
    return "\n".join(text.splitlines()[-lines:] if lines > 0 else [])
