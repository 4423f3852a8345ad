"""libvirt on this node: domains are defined, started, stopped and looked at here and nowhere else."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import libvirt
from lxml import etree

from pvccommon.errors import EnvironmentFault, Exists, NotFound, TimedOut, WrongState
from pvccommon.storage.pool import PoolSecret

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
UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


FindSecrets = Callable[[], Sequence[PoolSecret]]


class Hypervisor:
    """One connection to libvirt, made when first needed and again after libvirtd was restarted."""

    def __init__(self, uri: str, console_directory: str, find_secrets: FindSecrets = lambda: ()) -> None:
        """`find_secrets` gives what libvirt must know to open network disks; asked before each start."""
        self._uri = uri
        self._find_secrets = find_secrets
        self._console_directory = Path(console_directory)
        self._connection: libvirt.virConnect | None = None
        self._lock = threading.Lock()

    def console_path(self, name: str) -> Path:
        """The log of a domain's serial console, written by virtlogd."""
        return self._console_directory / f"{name}-console.log"

    def define(self, name: str, xml: str, *, autostart: bool = False) -> None:
        """Define a domain whose name and UUID are free. Raises EnvironmentFault when libvirt refuses."""
        with self._talking(f"define domain {name}") as connection:
            domain = connection.defineXML(xml)
            domain.setAutostart(autostart)

    def require_free(self, name: str) -> None:
        """Raise Exists when libvirt has a domain of this name, whoever made it."""
        what = f"define domain {name}"
        with self._talking(what) as connection:
            if _lookup(connection, name):
                why = "libvirt has a domain of this name that is none of our VMs"
                raise Exists(what, why, "choose another name, or see: virsh dominfo")

    def redefine(self, name: str, xml: str) -> None:
        """Replace the definition of a domain of the same name and UUID."""
        with self._talking(f"define domain {name}") as connection:
            connection.defineXML(xml)

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

    def wait_shutoff(self, name: str, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Until a guest that was asked to has powered off. Raises TimedOut."""
        deadline = time.monotonic() + timeout_s
        while self.state(name) != "shutoff":
            if time.monotonic() > deadline:
                why = f"the guest did not power off within {timeout_s:g} s"
                raise TimedOut(f"shut down domain {name}", why, f"pvc vm stop {name}")
            time.sleep(0.5)

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

    def state(self, name: str) -> str:
        """`running`, `shutoff`, …, or `missing`."""
        with self._talking(f"look at domain {name}") as connection:
            domain = _lookup(connection, name)
            return "missing" if domain is None else STATE_WORDS.get(domain.state()[0], "unknown")

    def states(self) -> dict[str, str]:
        """State of every domain libvirt knows, by name."""
        with self._talking("list domains") as connection:
            found = {}
            for domain in connection.listAllDomains():
                with suppress(libvirt.libvirtError):  # gone between the list and the question
                    found[domain.name()] = STATE_WORDS.get(domain.state()[0], "unknown")
            return found

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
            raise EnvironmentFault(
                what, exc.get_error_message() or str(exc), "see the log of libvirtd"
            ) from exc

    def _open(self) -> libvirt.virConnect:
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
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


def read_tail(path: Path, lines: int, limit_bytes: int = 1024 * 1024) -> str:
    """The last lines of a file a guest writes: at most `limit_bytes` are read, bad bytes replaced."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit_bytes))
            data = file.read(limit_bytes)
    except FileNotFoundError:
        return ""
    return "\n".join(
        data.decode(errors="replace").replace("\0", "").splitlines()[-lines:] if lines > 0 else []
    )
