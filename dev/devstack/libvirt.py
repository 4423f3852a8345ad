"""libvirtd and virtlogd in mount namespaces of their own, where their directories are the stack's.

So they collide with no libvirt that is already there, and their mounts vanish with them. From outside, the
socket below the state directory leads to them. Pools and console logs have one path inside and outside.
"""

import uuid
from pathlib import Path

from devstack.service import Launch, Service
from devstack.state import State, numbered
from pvccommon.errors import PvcError
from pvccommon.run import CommandFailed, run

# What the daemons see at /run and so on is this, below `<state>/libvirt`.
BINDS = ("run", "var/lib/libvirt", "etc/libvirt", "var/log/libvirt", "var/cache/libvirt")
# libvirtd probes QEMU again at every call (4 s) when QEMU's user has no access to a /dev/kvm that the probe
# could open, so both get the same: a node for group kvm where the CPU has KVM, else a file that is no device.
# The tmpfs that holds it belongs to the namespace.
# Mounts of other stacks are let go of: a copy here would keep their devices after they were unmounted there.
ENTER = """\
root=$1; kvm=$2; shift 2
own=${root%/*}
for path in $(awk '{print $5}' /proc/self/mountinfo); do
    case $path in "$own"/*) ;; "${own%/*}"/*) umount -l "$path" 2>/dev/null ;; esac
done
for d in $BINDS; do mount --bind "$root/$d" "/$d" || exit 1; done
if [ -e /dev/kvm ]; then
    mount -t tmpfs -o mode=0755 kvm "$root/dev" || exit 1
    if [ "$kvm" = yes ]; then mknod "$root/dev/kvm" c 10 232; else touch "$root/dev/kvm"; fi || exit 1
    chgrp kvm "$root/dev/kvm"
    if [ "$kvm" = yes ]; then chmod 0660 "$root/dev/kvm"; else chmod 0000 "$root/dev/kvm"; fi
    mount --bind "$root/dev/kvm" /dev/kvm || exit 1
fi
exec "$@"
"""

LIBVIRTD_CONF = """\
# Only root reaches the sockets; no network.
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
unix_sock_admin_perms = "0700"
log_outputs = "3:stderr"
host_uuid = "{host_uuid}"
"""

QEMU_CONF = """\
user = "libvirt-qemu"
group = "kvm"
# libvirtd gives a volume to QEMU's user while the VM runs, and to root afterwards.
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
# These need a cgroup and /dev arrangement that machines without systemd do not have.
cgroup_controllers = []
namespaces = []
# Serial consoles go through virtlogd, which limits their size.
stdio_handler = "logd"
vnc_listen = "127.0.0.1"
"""

# A guest cannot fill the disk with its console.
VIRTLOGD_CONF = """\
log_outputs = "3:stderr"
max_size = 2097152
max_backups = 3
"""


def root(state: State, node: int = 1) -> Path:
    return state / numbered("libvirt", node)


def console_directory(state: State, node: int = 1) -> Path:
    return state / numbered("console", node)


def uri(state: State, node: int = 1) -> str:
    return f"qemu+unix:///system?socket={root(state, node)}/run/libvirt/libvirt-sock"


def host_uuid(state: State, node: int) -> str:
    """libvirtd takes two daemons with the same for one host."""
    first = uuid.UUID(state.settings()["host_uuid"])
    return str(first if node == 1 else uuid.uuid5(first, str(node)))


def cpu_has_kvm() -> bool:
    """Intel's or AMD's virtualisation flag; /dev/kvm may be there without it, and no guest gets anywhere."""
    words = Path("/proc/cpuinfo").read_text().split()
    return "vmx" in words or "svm" in words


class LibvirtDaemon(Service):
    """What virtlogd and libvirtd share."""

    @property
    def root(self) -> Path:
        return root(self.state, self.node)

    def prepare(self) -> None:
        for name in BINDS:
            (self.root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("run/lock", "dev"):
            (self.root / name).mkdir(exist_ok=True)
        console_directory(self.state, self.node).mkdir(mode=0o755, exist_ok=True)
        settings = self.root / "etc/libvirt"
        (settings / "libvirtd.conf").write_text(
            LIBVIRTD_CONF.format(host_uuid=host_uuid(self.state, self.node))
        )
        (settings / "qemu.conf").write_text(QEMU_CONF)
        (settings / "virtlogd.conf").write_text(VIRTLOGD_CONF)

    def launch(self) -> Launch:
        kvm = "yes" if cpu_has_kvm() else "no"
        daemon = f"/usr/sbin/{type(self).name}"
        inside = ["/bin/sh", "-c", ENTER, self.name, str(self.root), kvm, daemon]
        namespace = ["unshare", "--mount", "--propagation", "private", "--"]
        return Launch([*namespace, *inside], env={"BINDS": " ".join(BINDS)})


class Virtlogd(LibvirtDaemon):
    name = "virtlogd"

    def check_ready(self) -> None:
        self._admin("virtlogd:///system", "virtlogd-admin-sock")

    def address(self) -> str:
        return str(self.root / "run/libvirt/virtlogd-sock")

    def _admin(self, daemon: str, socket: str) -> None:
        connection = f"{daemon}?socket={self.root}/run/libvirt/{socket}"
        run(["virt-admin", "-c", connection, "server-list"], timeout_s=10)


class Libvirtd(LibvirtDaemon):
    name = "libvirtd"
    ready_timeout_s = 60

    def check_ready(self) -> None:
        self._virsh("version", "--daemon")

    def before_stop(self) -> None:
        """Powers every VM off; the definitions stay with the rest of the state."""
        try:
            names = self._virsh(
                "list", "--state-running", "--state-paused", "--state-other", "--uuid"
            ).split()
        except PvcError:
            return  # a libvirtd that does not answer: its QEMU processes are ended as strays
        for name in names:
            self._destroy(name)

    def address(self) -> str:
        return uri(self.state, self.node)

    def _destroy(self, name: str) -> None:
        try:
            self._virsh("destroy", name)
        except CommandFailed as exc:
            if "domain is not running" not in exc.stderr:
                raise

    def _virsh(self, *words: str) -> str:
        return run(["virsh", "-q", "-c", self.address(), *words], timeout_s=30).stdout
