"""The sandbox policy: everything that is shut, opened or limited, one line each, with its reason.

`python3 -m pvcnoded.sandbox.policy` prints these tables as Markdown; docs/security.md holds that text and a
test keeps the two alike. Rules named "wall" are made by real root *before* the user namespace is entered, so
the kernel locks them: root of the sandbox can neither unmount nor remount them.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

ID_COUNT = 65536
HOST_NAME = "pvc-build"
SDK_PATH = "/run/pvc/sdk.zip"


class Rule(NamedTuple):
    """What is done, and why. `what` is a path, an argument, a capability, … as its table says."""

    what: str
    why: str


# Walls: empty read-only directories or files in place of the host's. A path that does not exist is skipped;
# `SandboxSpec.hidden_paths` and every named Unix socket elsewhere are added when a sandbox opens.
HIDDEN: tuple[Rule, ...] = (
    Rule("/etc/pvc", "configuration and passwords of the daemons"),
    Rule("/etc/ceph", "Ceph keys"),
    Rule("/etc/libvirt", "libvirt configuration, secrets, other machines' definitions"),
    Rule("/etc/ssl/private", "private keys of the host"),
    Rule("/etc/ssh", "host keys, and who may log in"),
    Rule("/etc/sudoers.d", "who may become root"),
    Rule("/lost+found", "stray files of the host's file system"),
    Rule("/var/lib/pvc", "storage pools, state, the consoles of other machines"),
    Rule("/var/lib/ceph", "Ceph daemons' data and keys"),
    Rule("/var/lib/libvirt", "disks, sockets and state of other machines"),
    Rule("/var/lib/postgresql", "database"),
    Rule("/var/lib/redis", "queue"),
    Rule("/var/lib/private", "state of the host's services"),
    Rule("/var/backups", "copies of the host's account files"),
    Rule("/var/mail", "the host's mail"),
    Rule("/var/crash", "core dumps of the host, writable for everybody on some systems"),
)

# Walls: private, empty, writable directories, all parts of one tmpfs. It may take half of `memory_mib`: a
# script that fills it is told so, instead of being ended by the memory limit.
WRITABLE: tuple[Rule, ...] = (
    Rule("/tmp", "scratch space; the host's may hold sockets and other builds' files"),
    Rule("/run", "hides the sockets of every service of the host"),
    Rule("/root", "home of the script's root; hides the administrator's"),
    Rule("/home", "hides users' files"),
    Rule("/mnt", "a place for mount points; hides what the host has mounted"),
    Rule("/media", "a place for mount points; hides what the host has mounted"),
    Rule("/srv", "hides served data"),
    Rule("/var/tmp", "scratch space"),
    Rule("/var/cache", "package tools cache here"),
    Rule("/var/log", "tools log here; hides the host's logs"),
    Rule("/var/spool", "hides jobs and mail in the queue"),
)

# Walls that are not a list of paths.
WALLS: tuple[Rule, ...] = (
    Rule("private mount propagation", "no mount made later, inside or outside, crosses the border"),
    Rule(
        "all mounts read-only, nosuid, nodev",
        "set on the whole tree at once before the border, so it is locked",
    ),
    Rule(
        "mounts below /sys, /dev and hidden paths detached",
        "control groups, debugfs, BPF and pools are absent",
    ),
    Rule(
        "/proc of a throw-away process namespace", "even unmounting the sandbox's /proc shows no host process"
    ),
    Rule(
        "/dev on a tmpfs that the sandbox may not write",
        "only nodes the worker made; no links can be planted",
    ),
    Rule(
        "/etc/resolv.conf names the sandbox's own resolver", "the host's resolver may be on closed loopback"
    ),
    Rule("named Unix sockets covered", "a read-only mount does not stop connect(2) to a socket"),
)

DEVICE_NODES: tuple[tuple[str, int, int], ...] = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEVICE_LINKS: tuple[tuple[str, str], ...] = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)

# Arguments of bwrap(1). {names} are filled in when a sandbox opens; a value follows its option after a blank.
BWRAP: tuple[Rule, ...] = (
    Rule("--userns {userns_fd}", "root inside is an unprivileged id range outside; a new one for each build"),
    Rule("--unshare-pid", "sees and signals only its own processes"),
    Rule("--unshare-ipc", "no shared memory or message queues of the host"),
    Rule("--unshare-uts", "its host name is its own"),
    Rule("--unshare-net", "its own network, with no way out but slirp4netns; also scopes abstract sockets"),
    Rule("--unshare-cgroup-try", "does not learn where it stands in the host's control groups"),
    Rule(f"--hostname {HOST_NAME}", "neutral name; the hypervisor's is nobody's business"),
    Rule("--dev-bind / /", "the walled tree, which is read-only already and locked"),
    Rule("--proc /proc", "its own process namespace"),
    Rule("--perms 0444", "the SDK is not secret"),
    Rule(
        f"--ro-bind-data {{sdk_fd}} {SDK_PATH}", "the SDK by descriptor: no path of the host has to be open"
    ),
    Rule("--chdir /", "no working directory of the worker"),
    Rule("--clearenv", "no variable of the worker's environment"),
    Rule("--new-session", "cannot push characters into a terminal of the host (TIOCSTI)"),
    Rule("--die-with-parent", "ends when the worker ends, however it ends"),
    Rule("--add-seccomp-fd {seccomp_fd}", "system call filter, see below"),
)

# Numbers of the descriptors handed to bwrap. Small, so that a shell can close what bwrap leaves open.
DESCRIPTORS = {
    "channel_fd": 3,
    "sdk_fd": 4,
    "seccomp_fd": 5,
    "go_fd": 6,
    "ready_fd": 7,
    "userns_fd": 8,
    "arguments_fd": 9,
}

# Run inside before the main program. The two mounts are not walls on purpose: a locked mount below /dev would
# make the kernel refuse "mount --bind /dev TARGET/dev", which half of all chroot scripts do. "ready" tells
# the keeper that bwrap is done (both set up the loopback interface), a line from it that the network is.
PRELUDE = (
    "mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts"
    " && mount -t tmpfs -o nosuid,nodev,mode=1777,size=25% shm /dev/shm"
    " && echo ready >&7 && exec 7>&- 8<&- && read go <&6 && exec 6<&-"
    ' && exec "$@"'
)

# Kept of root's capabilities, and valid in its own user namespace only. All others leave the bounding set.
# Left out on purpose: CAP_NET_ADMIN and CAP_NET_RAW (the network rules cannot be undone, and packet filter
# code of the kernel is out of reach), CAP_SYS_RESOURCE (limits and the ban on user namespaces stay).
CAPABILITIES: tuple[Rule, ...] = (
    Rule("CAP_CHOWN", "package files have owners"),
    Rule("CAP_DAC_OVERRIDE", "root writes where others may not"),
    Rule("CAP_DAC_READ_SEARCH", "root reads where others may not"),
    Rule("CAP_FOWNER", "modes and times of others' files"),
    Rule("CAP_FSETID", "set-user-ID bits survive writing"),
    Rule("CAP_SETFCAP", "packages set file capabilities"),
    Rule("CAP_SETUID", "tools change to service users"),
    Rule("CAP_SETGID", "tools change to service groups"),
    Rule("CAP_SETPCAP", "tools drop capabilities"),
    Rule("CAP_KILL", "ends its own processes"),
    Rule("CAP_SYS_ADMIN", "mount, chroot helpers"),
    Rule("CAP_SYS_CHROOT", "chroot into the new system"),
    Rule("CAP_SYS_PTRACE", "reads /proc of its own processes of other users"),
    Rule("CAP_NET_BIND_SERVICE", "a service on a low port of its own network"),
    Rule("CAP_IPC_OWNER", "its own IPC objects"),
)

# Answered with EPERM. All are useless to a builder; most have a history of kernel bugs.
DENIED_SYSCALLS: tuple[Rule, ...] = (
    Rule("add_key", "keyrings are not namespaced"),
    Rule("request_key", "keyrings are not namespaced"),
    Rule("keyctl", "keyrings are not namespaced"),
    Rule("bpf", "kernel programs"),
    Rule("perf_event_open", "kernel performance counters"),
    Rule("userfaultfd", "makes kernel races easy"),
    Rule("io_uring_setup", "large kernel surface"),
    Rule("io_uring_enter", "large kernel surface"),
    Rule("io_uring_register", "large kernel surface"),
    Rule("kexec_load", "replaces the kernel"),
    Rule("kexec_file_load", "replaces the kernel"),
    Rule("init_module", "kernel modules"),
    Rule("finit_module", "kernel modules"),
    Rule("delete_module", "kernel modules"),
    Rule("open_by_handle_at", "opens files by number, past directories"),
    Rule("iopl", "I/O ports"),
    Rule("ioperm", "I/O ports"),
    Rule("swapon", "host memory"),
    Rule("swapoff", "host memory"),
    Rule("reboot", "host power"),
    Rule("syslog", "kernel log"),
    Rule("acct", "process accounting of the host"),
    Rule("settimeofday", "host clock"),
    Rule("clock_settime", "host clock"),
    Rule("clock_adjtime", "host clock"),
    Rule("adjtimex", "host clock"),
    Rule("quotactl", "quotas of host file systems"),
    Rule("lookup_dcookie", "kernel profiling"),
    Rule("move_pages", "memory placement of the host"),
    Rule("migrate_pages", "memory placement of the host"),
)

# ioctl(2) requests answered with EPERM: whoever may write a loop device may otherwise point it elsewhere or
# free its number for another build. linux/loop.h, asm/ioctls.h.
DENIED_IOCTLS: tuple[tuple[int, Rule], ...] = (
    (0x4C00, Rule("LOOP_SET_FD", "loop devices belong to the worker")),
    (0x4C01, Rule("LOOP_CLR_FD", "loop devices belong to the worker")),
    (0x4C02, Rule("LOOP_SET_STATUS", "loop devices belong to the worker")),
    (0x4C03, Rule("LOOP_GET_STATUS", "tells a path of the host")),
    (0x4C04, Rule("LOOP_SET_STATUS64", "loop devices belong to the worker")),
    (0x4C05, Rule("LOOP_GET_STATUS64", "tells a path of the host")),
    (0x4C06, Rule("LOOP_CHANGE_FD", "loop devices belong to the worker")),
    (0x4C07, Rule("LOOP_SET_CAPACITY", "loop devices belong to the worker")),
    (0x4C08, Rule("LOOP_SET_DIRECT_IO", "loop devices belong to the worker")),
    (0x4C09, Rule("LOOP_SET_BLOCK_SIZE", "loop devices belong to the worker")),
    (0x4C0A, Rule("LOOP_CONFIGURE", "loop devices belong to the worker")),
    (0x5412, Rule("TIOCSTI", "pushes characters into a terminal")),
)

# ioctl(2) requests that need real root and are answered with success, without effect.
PRETENDED_IOCTLS: tuple[tuple[int, Rule], ...] = (
    (0x1261, Rule("BLKFLSBUF", "mkfs.xfs gives up without it; it has called fsync before")),
    (0x40081271, Rule("BLKBSZSET", "mkfs.xfs gives up without it; only a hint for the page cache")),
)

LIMITS: tuple[Rule, ...] = (
    Rule(
        "processes",
        "`processes`, counted for the whole user namespace (RLIMIT_NPROC), and a pids control group",
    ),
    Rule(
        "memory",
        "`memory_mib` by control group where the host has one; the writable tmpfs has half that size",
    ),
    Rule("open files", "1,024, at most 65,536 a process"),
    Rule("core dumps", "none, and no crash is handed to the host's core dump handler"),
    Rule("user namespaces", "none inside: user.max_user_namespaces of the sandbox is 0"),
    Rule("oom_score_adj", "+500 and cannot be lowered: the kernel ends a build before a virtual machine"),
    Rule("no_new_privs", "set by bwrap: no set-user-ID program gains anything"),
)

# Routes of type "prohibit" in the sandbox's network; it has no CAP_NET_ADMIN to remove them.
# The host's own IPv4 addresses and `SandboxSpec.denied_networks` are added when a sandbox opens.
DENIED_NETWORKS: tuple[Rule, ...] = (
    Rule("0.0.0.0/8", "addresses of “this host”"),
    Rule("169.254.0.0/16", "link-local: metadata services of the hypervisor's own cloud"),
    Rule("224.0.0.0/4", "multicast"),
    Rule("10.0.2.2/32", "slirp4netns's name for the host's loopback (also refused by slirp4netns itself)"),
)

# File systems the worker mounts for a script. Options pass only if listed: others name host paths or devices.
FILESYSTEMS: dict[str, frozenset[str]] = {
    "ext2": frozenset({"errors"}),
    "ext3": frozenset({"errors", "data", "commit", "discard", "barrier"}),
    "ext4": frozenset({"errors", "data", "commit", "discard", "nodiscard", "barrier", "nobarrier", "noload"}),
    "xfs": frozenset({"discard", "nodiscard", "inode32", "inode64", "logbsize"}),
    "btrfs": frozenset(
        {"compress", "compress-force", "discard", "nodiscard", "commit", "subvol", "space_cache"}
    ),
    "vfat": frozenset({"umask", "fmask", "dmask", "shortname", "codepage", "iocharset", "utf8", "discard"}),
}
# A cloned volume has its origin's UUID, which XFS refuses to mount twice.
FORCED_OPTIONS: dict[str, tuple[str, ...]] = {"xfs": ("nouuid",)}


def bwrap_arguments(values: Mapping[str, int]) -> list[str]:
    """The arguments of bwrap(1), names filled in, one list element each."""
    arguments = [part for rule in BWRAP for part in rule.what.format_map(values).split(" ")]
    for rule in CAPABILITIES:
        arguments += ["--cap-add", rule.what]
    return arguments


def _table(title: str, head: str, rules: Iterable[Rule]) -> list[str]:
    rows = [f"| `{rule.what}` | {rule.why} |" for rule in rules]
    return [f"#### {title}", "", f"| {head} | why |", "|---|---|", *rows, ""]


def render_markdown() -> str:
    """All tables as Markdown, for docs/security.md."""
    nodes = [Rule(f"/dev/{name}", f"character device {major}:{minor}") for name, major, minor in DEVICE_NODES]
    filesystems = [Rule(name, ", ".join(sorted(options))) for name, options in FILESYSTEMS.items()]
    return "\n".join(
        [
            *_table("Walls", "wall", WALLS),
            *_table("Hidden (empty, read-only)", "path", HIDDEN),
            *_table("Private and writable (one tmpfs)", "path", WRITABLE),
            *_table("Device nodes, besides the build's own disks", "node", nodes),
            *_table("Arguments of bwrap", "argument", BWRAP),
            *_table("Capabilities kept, in its own user namespace only", "capability", CAPABILITIES),
            *_table("System calls denied", "system call", DENIED_SYSCALLS),
            *_table("ioctl requests denied", "request", [rule for _number, rule in DENIED_IOCTLS]),
            *_table("ioctl requests pretended", "request", [rule for _number, rule in PRETENDED_IOCTLS]),
            *_table("Limits", "limit", LIMITS),
            *_table("Networks denied", "network", DENIED_NETWORKS),
            *_table("File systems the worker mounts, and the options it passes on", "type", filesystems),
        ]
    )


if __name__ == "__main__":
    print(render_markdown())
