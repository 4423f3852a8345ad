"""A script that tries to get out: each attempt is made for real, as root of the sandbox, and must fail."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pvccommon.errors import EnvironmentFault
from pvcnoded.sandbox.sandbox import ENVIRONMENT, SandboxSpec, open_sandbox

from .conftest import Inside, Loop, LoopMaker, Opener, give

pytestmark = pytest.mark.system

SECRET = "a-secret-of-the-host"
C = "mkdir /tmp/c"

# Shell scripts that must end with an error.
REFUSED = {
    "read the password hashes": "cat /etc/shadow",
    "read the kernel log": "dmesg",
    "read physical memory": "head -c 1 /proc/kcore",
    "remount the root writable": "mount -o remount,rw /",
    "remount the root writable, this mount only": "mount -o remount,bind,rw /",
    "remount the root with devices": "mount -o remount,bind,ro,dev /",
    "remount a copy of the root writable": f"{C}; mount --rbind / /tmp/c && mount -o remount,bind,rw /tmp/c",
    "remount /usr by binding it": f"{C} && mount --bind /usr /tmp/c && mount -o remount,bind,rw /tmp/c",
    "remount /sys writable": "mount -o remount,bind,rw /sys",
    "mount a writable sysfs": f"{C} && mount -t sysfs sysfs /tmp/c && echo 1 > /tmp/c/module/loop/uevent",
    "write to /etc": "touch /etc/x",
    "write to /usr": "touch /usr/bin/x",
    "write to /": "mkdir /x",
    "write to /dev": "touch /dev/x",
    "link a node in /dev": "ln /dev/null /dev/x",
    "make a node in /dev": "mknod /dev/vda b 254 0",
    "make a node in /tmp": "mknod /tmp/vda b 254 0",
    "unmount /dev": "umount -l /dev",
    "unmount /run": "umount -l /run",
    "mount a control group": f"{C} && mount -t cgroup2 cgroup2 /tmp/c && mkdir /tmp/c/x",
    "mount the host's device file system": f"{C} && mount -t devtmpfs devtmpfs /tmp/c && cat /tmp/c/vda",
    "mount debugfs": f"{C} && mount -t debugfs debugfs /tmp/c",
    "open a new user namespace": "unshare --user true",
    "raise the limit of user namespaces": "echo 100 > /proc/sys/user/max_user_namespaces",
    "set a kernel setting": "echo /tmp/x > /proc/sys/kernel/core_pattern",
    "set a memory setting": "echo 1 > /proc/sys/vm/overcommit_memory",
    "press sysrq": "echo b > /proc/sysrq-trigger",
    "lower the OOM score": "echo -900 > /proc/self/oom_score_adj",
    "set the clock": "date -s 2001-01-01",
    "raise a hard limit": "ulimit -H -n 1000000",
    "turn on swap": "dd if=/dev/zero of=/tmp/s bs=1M count=4 && mkswap /tmp/s && swapon /tmp/s",
    "change routes": "ip route del prohibit 192.0.2.0/24 2>&1 || ip route add 192.0.2.0/24 dev lo",
    "change the packet filter": "ip link add dummy0 type dummy",
    "make a loop device": "losetup -f /etc/hostname",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of the host whose content the sandbox must never read."""
    directory = tmp_path_factory.mktemp("host")
    (directory / "pvc.conf").write_text(SECRET)
    yield directory


@pytest.mark.parametrize("script", REFUSED.values(), ids=REFUSED.keys())
def test_refused(inside: Inside, script: str) -> None:
    answer = inside.sh(f"set -e; {script}")
    assert answer.status != 0, answer.output


def test_configured_paths_are_hidden(opened: Opener) -> None:
    with tempfile.TemporaryDirectory(dir="/opt", prefix="pvc-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "file").write_text(SECRET)
        (directory / "below").mkdir()
        (directory / "below" / "pvc.conf").write_text(SECRET)
        with opened() as inside:
            assert inside.good(f"cat {name}/file {name}/below/pvc.conf") == SECRET * 2  # the control
        with opened(hidden_paths=(f"{name}/file", f"{name}/below")) as inside:
            assert inside.good(f"cat {name}/file; ls -A {name}/below") == ""
            inside.sh(f"umount -l {name}/file; umount -l {name}/below; umount -l {name}")
            assert SECRET not in inside.sh(f"cat {name}/file {name}/below/pvc.conf").output
            assert inside.sh(f"echo x > {name}/file").status != 0


def test_unmounting_everything_reveals_nothing(opened: Opener, shared: Path) -> None:
    with opened(hidden_paths=(str(shared),)) as inside:
        inside.sh("cut -d' ' -f2 /proc/self/mounts | tac | while read m; do umount -l $m; done")
        found = inside.sh(
            f"cat {shared}/pvc.conf; ls -A {shared} /etc/pvc /var/lib/pvc /etc/libvirt /run/postgresql"
        ).output
        assert SECRET not in found
        processes = inside.python(
            "import os; print(*(n for n in os.listdir('/proc') if n.isdigit()))"
        ).output.split()
        assert len(processes) < 8
        assert str(os.getpid()) not in processes


def test_the_outer_process_leads_nowhere(inside: Inside) -> None:
    """Below the sandbox's own /proc lies that of bwrap, whose process 1 has the walled view and no more."""
    out = inside.sh(
        "umount /proc; ls /proc/1/root/etc/libvirt /proc/1/root/var/lib/libvirt /proc/1/root/dev;"
        " touch /proc/1/root/etc/x /proc/1/root/usr/x; nsenter --mount=/proc/1/ns/mnt true"
    )
    assert out.status != 0
    assert not Path("/etc/x").exists()
    assert "vda" not in out.output and "qemu.conf" not in out.output


def test_no_host_process_is_seen_or_signalled(inside: Inside) -> None:
    victim = subprocess.Popen(["sleep", "100"])
    try:
        assert str(victim.pid) not in inside.good("ls /proc").split()
        assert inside.sh(f"kill -9 {victim.pid}").status != 0
        inside.sh("for n in $(seq 3 40000); do kill -9 $n; done 2>/dev/null")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_ptrace_and_namespaces_of_the_host_are_out_of_reach(inside: Inside) -> None:
    script = (
        "import ctypes, os\n"
        f"libc = ctypes.CDLL(None, use_errno=True)\nprint(libc.ptrace(16, {os.getpid()}, 0, 0))\n"
        "for pid in os.listdir('/proc'):\n"
        " if pid.isdigit():\n"
        "  for kind in ('pid', 'net', 'ipc', 'uts', 'mnt', 'user'):\n"
        "   print(kind, os.readlink(f'/proc/{pid}/ns/{kind}'))\n"
    )
    out = inside.python(script).output
    assert out.startswith("-1")
    for kind in ("pid", "net", "ipc", "uts", "mnt", "user"):
        assert f"{kind} {os.readlink(f'/proc/self/ns/{kind}')}" not in out


def test_nothing_on_the_host_tree_can_be_written(inside: Inside) -> None:
    out = inside.good(
        "for d in / /etc /usr /usr/local /var /var/lib /opt /boot /var/lib/dpkg /etc/cron.d /sys; do"
        ' if touch "$d/.pvc-test" 2>/dev/null; then echo "$d"; fi; done'
    )
    assert out == ""


def test_keyrings_and_other_kernel_calls_are_denied(inside: Inside) -> None:
    calls = {"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "keyctl": 250,
             "add_key": 248, "open_by_handle_at": 304, "kexec_load": 246, "finit_module": 313}  # fmt: skip
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers of x86_64")
    out = inside.python(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {calls!r}.items():\n"
        " result = libc.syscall(number, 0, 0, 0, 0, 0)\n print(name, result, ctypes.get_errno())\n"
    ).output
    assert out.splitlines() == [f"{name} -1 1" for name in calls]


def test_only_its_own_descriptors_and_environment_arrive(spec: SandboxSpec) -> None:
    script = """
import os
for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        print(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0])
    except OSError:
        pass  # the descriptor of the listing itself
print(*os.environ)
os.read(3, 10)
"""
    with open_sandbox(
        replace(spec, environment={"SECRET": SECRET}), command=["/usr/bin/python3", "-c", script]
    ) as sandbox:
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):  # no process, or one that has just ended
                assert SECRET.encode() not in (Path("/proc") / name / "cmdline").read_bytes()
        sandbox.channel.sendall(b"go\n")
        assert sandbox.wait(10) == 0
        words = os.read(sandbox.output, 65536).decode().split()
    assert words[:4] == ["/dev/null", "pipe", "pipe", "socket"]
    assert set(words[4:]) == {*ENVIRONMENT, "PWD", "SECRET", "PVC_CHANNEL_FD"}


def test_another_builds_files_and_disks_are_out_of_reach(opened: Opener, loop: LoopMaker) -> None:
    mine, theirs = loop(), loop()
    Path(theirs.path).write_bytes(SECRET.encode())
    with opened() as first, opened(first_uid=4_000_000_000) as second:
        second.good(f"echo {SECRET} > /tmp/file")
        give(first, mine)
        give(second, theirs)
        assert SECRET in second.good(f"head -c 100 {theirs.path}")
        assert SECRET not in first.sh(f"cat /tmp/file; head -c 100 {theirs.path}").output
        assert first.sh(f"mknod /tmp/d b {theirs.major} {theirs.minor}").status != 0


def test_a_device_node_on_a_crafted_file_system_is_dead(inside: Inside, loop: LoopMaker) -> None:
    """The script owns its raw disk, so it can write an inode for any device of the host, and mount it."""
    mine, victim = loop(), loop()
    Path(victim.path).write_bytes(SECRET.encode())
    give(inside, mine)
    inside.good(f"mkfs.ext4 -q {mine.path}")
    inside.good(f"debugfs -w -R 'mknod dev b {victim.major} {victim.minor}' {mine.path}")
    inside.good(f"debugfs -w -R 'set_inode_field dev mode 060666' {mine.path}")
    inside.sandbox.mount(mine.path, "/mnt", "ext4")
    assert inside.good("stat -c %F /mnt/dev").strip() == "block special file"
    for attempt in ("true", "mount -o remount,bind,dev /mnt", "mount -o remount,bind,dev,suid /mnt",
                    "mount --bind /mnt /srv && mount -o remount,bind,dev /srv && cd /srv"):  # fmt: skip
        answer = inside.sh(f"{attempt}; head -c 20 /mnt/dev /srv/dev ./dev")
        assert SECRET not in answer.output
        assert "Permission denied" in answer.output


def test_a_removed_device_stays_removed(inside: Inside, disk: Loop) -> None:
    """Its number may soon belong to another build: neither a bind mount nor a link of the node may work."""
    Path(disk.path).write_bytes(SECRET.encode())
    give(inside, disk)
    inside.good(f"touch /tmp/kept && mount --bind {disk.path} /tmp/kept && head -c 10 /tmp/kept")
    assert (
        inside.sh(f"ln {disk.path} /dev/shm/x; ln {disk.path} /dev/x; cp -a {disk.path} /tmp/copy").status
        != 0
    )
    inside.sandbox.remove_device(disk.name)
    answer = inside.sh(
        f"chmod 666 /tmp/kept; chown 0:0 /tmp/kept; head -c 100 /tmp/kept {disk.path} /tmp/copy"
    )
    assert SECRET not in answer.output
    assert answer.status != 0


def test_a_loop_device_cannot_be_repointed_or_freed(inside: Inside, disk: Loop) -> None:
    give(inside, disk)
    assert inside.sh(f"losetup -d {disk.path}").status != 0
    assert inside.sh(f"losetup -o 512 {disk.path} /etc/hostname").status != 0
    out = inside.python(
        f"import fcntl, os\nfd = os.open({disk.path!r}, os.O_RDWR)\n"
        "for request in range(0x4C00, 0x4C0B):\n"
        " for high in (0, 1 << 32):\n"
        "  try: fcntl.ioctl(fd, request | high, bytes(512)); print('done', hex(request))\n"
        "  except (OSError, OverflowError, ValueError) as e: pass\n"
    )
    assert out.output == ""


def test_hostile_mount_paths_stay_inside(inside: Inside, loop: LoopMaker) -> None:
    disk = loop(filesystem="ext4")
    give(inside, disk)
    before = Path("/proc/self/mountinfo").read_text()
    inside.good("ln -s /proc/1/root/etc /tmp/a; ln -s ../../../../etc /tmp/b; ln -s /proc/self/root /tmp/c")
    with pytest.raises(
        EnvironmentFault
    ):  # what mounts is no process of the sandbox: /proc/self leads nowhere
        inside.sandbox.mount(disk.path, "/tmp/c/etc", "ext4")
    for path in ("/tmp/b", "/../../../../etc", "/tmp/a"):
        inside.sandbox.mount(disk.path, path, "ext4")
        assert "lost+found" in inside.good(f"ls {path}/.")
        assert Path("/proc/self/mountinfo").read_text() == before
        assert not Path("/etc/lost+found").exists()
        inside.sandbox.unmount(f"{path}/.")


def test_chroot_and_pivot_root_lead_nowhere(inside: Inside, shared: Path) -> None:
    out = inside.python(
        "import os\nos.makedirs('/tmp/jail')\nfd = os.open('/', 0)\nos.chroot('/tmp/jail')\nos.fchdir(fd)\n"
        "for _ in range(50): os.chdir('..')\nos.chroot('.')\n"
        f"print(os.path.exists({str(shared)!r}), os.listdir('/var/lib/libvirt'))"
    ).output
    assert out.strip() == "False []"
    inside.sh("mkdir /tmp/n; mount --bind /tmp/n /tmp/n; mkdir /tmp/n/o; pivot_root /tmp/n /tmp/n/o")
    assert not (Path("/tmp") / "n").exists()


@pytest.fixture
def listener() -> Iterator[int]:
    """A service of the host on all its addresses, IPv4 and IPv6, that greets whoever connects; its port."""
    server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    def greet() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.sendall(SECRET.encode())
            connection.close()

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    port = server.getsockname()[1]
    for address in host_addresses():
        if not address.startswith("fe80"):
            with socket.create_connection((address, port)) as control:
                assert control.recv(100).decode() == SECRET
    yield port
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


CONNECT = """
import socket, sys
for address in {addresses!r}:
    for device in (None, b"tap0"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        s = socket.socket(family)
        s.settimeout(0.5)
        try:
            if device:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            s.connect((address, {port}))
            print("CONNECTED", address, device, s.recv(100))
        except OSError as e:
            print(address, device, e)
"""


def host_addresses() -> list[str]:
    out = subprocess.check_output(["ip", "-o", "addr"], text=True)
    return sorted({line.split()[3].split("/")[0] for line in out.splitlines()})


def test_services_of_the_host_cannot_be_reached(opened: Opener, listener: int) -> None:
    addresses = [*host_addresses(), "10.0.2.2", "0.0.0.0", "127.1.2.3", "169.254.169.254", "::ffff:127.0.0.1"]
    assert len(addresses) > 6
    with opened(network=True) as inside:
        out = inside.python(CONNECT.format(addresses=addresses, port=listener)).output
        assert "CONNECTED" not in out and SECRET not in out
        inside.sh("ip route flush type prohibit; ip route flush table main; ip link set tap0 down")
        assert "CONNECTED" not in inside.python(CONNECT.format(addresses=addresses, port=listener)).output
        raw = "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
        assert "PermissionError" in inside.python(raw).output


def test_without_a_network_there_is_none(opened: Opener, listener: int) -> None:
    with opened(network=False) as inside:
        assert inside.good("ip -o link | wc -l").strip() == "1"
        assert (
            "CONNECTED" not in inside.python(CONNECT.format(addresses=host_addresses(), port=listener)).output
        )


def test_denied_networks_are_unreachable(opened: Opener) -> None:
    with opened(network=True, denied_networks=("198.51.100.0/24",)) as inside:
        out = inside.python(CONNECT.format(addresses=["198.51.100.7"], port=6379)).output
        assert "Permission denied" in out or "Network is unreachable" in out or "No route" in out


def test_names_are_resolved(opened: Opener) -> None:
    with opened(network=True) as inside:
        sources = inside.sh("grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list* 2>/dev/null").output.split()
        hosts = {url.split("//")[1].split(":")[0] for url in sources}
        known = [
            host for host in hosts if subprocess.run(["getent", "ahostsv4", host], capture_output=True).stdout
        ]
        if not known:
            pytest.skip("the host resolves none of its package mirrors itself")
        inside.good(f"getent ahostsv4 {known[0]}")


def test_unix_sockets_of_the_host_are_out_of_reach(opened: Opener) -> None:
    with tempfile.TemporaryDirectory(dir="/opt", prefix="pvc-test-") as name:
        os.chmod(name, 0o755)
        named, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        with named, abstract:
            named.bind(f"{name}/socket")
            os.chmod(f"{name}/socket", 0o777)
            named.listen()
            abstract.bind("\0pvc-test-abstract")
            abstract.listen()
            with opened() as inside:
                for address in (f"{name}/socket", "\0pvc-test-abstract"):
                    out = inside.python(
                        f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})"
                    ).output
                    assert "ConnectionRefusedError" in out or "PermissionError" in out


def test_fork_bombs_hit_a_limit(opened: Opener) -> None:
    with opened(processes=60) as inside:
        out = inside.python(
            "import os, time\nn = 0\nme = os.getpid()\ntry:\n while n < 500:\n"
            "  if os.fork() == 0: os.closerange(0, 3); time.sleep(60)\n  n += 1\n"
            "except BlockingIOError: pass\nif os.getpid() == me: print(n)"
        )
        assert 10 < int(out.output) < 60


def test_memory_hits_a_limit(opened: Opener) -> None:
    with opened(memory_mib=128) as inside:
        if inside.sandbox.limits["memory"].startswith("none"):
            pytest.skip("no control group limits memory on this machine")
        assert inside.python("x = b'x' * (512 << 20)").status != 0
        assert inside.sandbox.wait(0) is None
        assert inside.sh("dd if=/dev/zero of=/tmp/x bs=1M count=512").status != 0


def test_capabilities_are_those_of_the_policy(inside: Inside) -> None:
    from pvcnoded.sandbox.policy import CAPABILITIES

    mask = inside.good("grep CapBnd /proc/self/status").split()[1]
    names = (
        subprocess.check_output(["capsh", f"--decode={mask}"], text=True).strip().split("=", 1)[1].split(",")
    )
    assert sorted(names) == sorted(rule.what.lower() for rule in CAPABILITIES)
    assert "NoNewPrivs:\t1" in inside.good("cat /proc/self/status")


def test_a_signal_storm_ends_only_the_sandbox(opened: Opener) -> None:
    with opened() as inside:
        inside._channel.write(b'{"argv": ["/bin/sh", "-c", "kill -9 -1; kill -9 1; kill -9 0"]}\n')
        inside._channel.flush()
        assert inside.sandbox.wait(10) in (-signal.SIGKILL, 128 + signal.SIGKILL)
