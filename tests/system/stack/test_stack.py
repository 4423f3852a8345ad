"""The stack: comes up, is asked from outside, goes down without a trace."""

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from devstack import DEFAULT_ROOT, Stack, libvirt, temporary_stack
from devstack.process import Process, command_line, marked
from devstack.state import CHECKOUT
from pvccommon.errors import EnvironmentFault, WrongInput
from pvccommon.run import run

pytestmark = pytest.mark.system

BACKENDS = ("postgresql", "redis", "libvirt")
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><bios useserial='yes'/></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'><log file='{log}' append='on'/></serial>
  </devices>
</domain>
"""


def traces(path: Path) -> list[str]:
    """What the machine shows of the stack in `path`: processes, mounts, loop devices, bridges."""
    loops = run(["losetup", "--list", "--noheadings"], timeout_s=10).stdout.splitlines()
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    links = json.loads(run(["ip", "-json", "link"], timeout_s=10).stdout)
    bridges = [link["ifname"] for link in links if link["ifname"].startswith("virbr")]
    lines = [command_line(pid) for pid in marked(path)] + loops + mounts
    return [line for line in lines if str(path) in line] + bridges


def virsh(stack: Stack, *words: str) -> str:
    return run(["virsh", "-q", "-c", libvirt.uri(stack.state), *words], timeout_s=30).stdout


@pytest.fixture
def backends() -> Iterator[Stack]:
    # A careful administrator's umask must not keep QEMU from its files.
    umask = os.umask(0o077)
    try:
        with temporary_stack(only=BACKENDS) as stack:
            yield stack
    finally:
        os.umask(umask)
    assert traces(stack.state.path) == []


@pytest.fixture
def small() -> Iterator[Stack]:
    """Without libvirt, which takes seconds to start."""
    with temporary_stack(only=("postgresql", "redis")) as stack:
        yield stack
    assert traces(stack.state.path) == []


def running(stack: Stack) -> dict[str, int | None]:
    return {service.name: service.pid for service in stack.status()}


def start_vm(stack: Stack, name: str) -> Path:
    """A VM without an operating system; the path is the log of its serial console."""
    disk, log = stack.state / "pools/vms" / name, stack.state / "console" / f"{name}.log"
    disk.write_bytes(bytes(1 << 20))
    description = stack.state / f"{name}.xml"
    description.write_text(DOMAIN.format(name=name, disk=disk, log=log))
    virsh(stack, "create", str(description))
    return log


def wait_for_text(log: Path, text: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in (log.read_text(errors="replace") if log.exists() else ""):
        assert time.monotonic() < deadline, f"no {text!r} in {log}"
        time.sleep(0.1)


def test_whole_stack_comes_up_serves_and_leaves_nothing() -> None:
    with temporary_stack() as stack:
        assert all(service.running for service in stack.status())
        environment = stack.environment()
        answer = subprocess.run(
            [CHECKOUT / "dev/bin/pvc", "node", "list", "-f", "raw"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "hv1" in answer.stdout
        path = stack.state.path
    assert traces(path) == []
    assert not path.exists()


def test_api_runs_without_rights_and_with_secrets_of_its_own() -> None:
    with temporary_stack(only=("postgresql", "redis", "api")) as stack:
        pid = running(stack)["api"]
        assert pid and os.stat(f"/proc/{pid}").st_uid == 65534
        for secret in ("api/database.password", "api/queue.password", "admin.token", "database.password"):
            assert (stack.state / secret).stat().st_mode & 0o777 == 0o600
        # Owned by root: what only the node daemon and the administrator read.
        assert (stack.state / "database.password").stat().st_uid == 0


def test_second_up_starts_nothing_anew(backends: Stack) -> None:
    first = running(backends)
    backends.up(only=BACKENDS)
    assert running(backends) == first
    assert all(first[name] for name in ("postgresql", "redis", "virtlogd", "libvirtd"))


def test_down_keeps_data_for_the_next_up(small: Stack) -> None:
    port = small.state.port("postgresql")
    password = small.state.secret("database")

    def query(statement: str) -> str:
        options = ("-h", "127.0.0.1", "-p", str(port), "-U", "pvc", "-tA", "pvc")
        return run(
            ["psql", *options, "-c", statement], timeout_s=30, env={"PGPASSWORD": password}
        ).stdout.strip()

    query("CREATE TABLE kept AS SELECT 42 AS answer")
    small.down()
    assert small.leftovers() == []
    assert not any(running(small).values())
    small.up(only=("postgresql",))
    assert query("SELECT answer FROM kept") == "42"


def test_down_twice_and_without_a_stack(small: Stack) -> None:
    small.down(purge=True)
    small.down(purge=True)
    assert not small.state.path.exists()


def test_libvirt_is_reached_from_outside_and_runs_a_vm(backends: Stack) -> None:
    log = start_vm(backends, "probe")
    wait_for_text(log, "SeaBIOS")
    disk = backends.state / "pools/vms/probe"
    assert disk.stat().st_uid != 0, "QEMU's user owns the disk while the VM runs"
    backends.down()
    assert disk.stat().st_uid == 0
    assert backends.leftovers() == []
    assert traces(backends.state.path) == []


def test_vm_of_a_killed_libvirtd_is_ended_by_down(backends: Stack) -> None:
    wait_for_text(start_vm(backends, "orphan"), "SeaBIOS")
    pid = running(backends)["libvirtd"]
    assert pid
    os.kill(pid, 9)
    assert any("qemu-system" in line for line in backends.leftovers())
    backends.down()
    assert backends.leftovers() == []


def test_up_after_a_service_was_killed_starts_that_one(small: Stack) -> None:
    first = running(small)
    pid = first["redis"]
    assert pid
    os.kill(pid, 9)
    small.up(only=("postgresql", "redis"))
    second = running(small)
    assert second.pop("redis") not in (None, first.pop("redis"))
    assert second == first


def test_killed_postgresql_recovers(small: Stack) -> None:
    pid = running(small)["postgresql"]
    assert pid
    os.kill(pid, 9)
    small.up(only=("postgresql",))
    assert running(small)["postgresql"] not in (None, pid)


def test_two_stacks_at_once_do_not_see_each_other(backends: Stack) -> None:
    with temporary_stack(only=BACKENDS) as other:
        mine, theirs = backends.state.settings()["ports"], other.state.settings()["ports"]
        assert not set(mine.values()) & set(theirs.values())
        wait_for_text(start_vm(backends, "probe"), "SeaBIOS")
        assert virsh(other, "list", "--all", "--name").strip() == ""
        other.down()
        assert virsh(backends, "list", "--name").strip() == "probe"


def test_stray_processes_mounts_and_loop_devices_are_taken_away(small: Stack) -> None:
    image, mountpoint = small.state / "image", small.state / "mountpoint"
    image.write_bytes(bytes(8 << 20))
    mountpoint.mkdir()
    device = run(["losetup", "--find", "--show", str(image)], timeout_s=10).stdout.strip()
    run(["mkfs.ext4", "-q", device], timeout_s=30)
    run(["mount", device, str(mountpoint)], timeout_s=10)
    marker = {"PVC_STACK_STATE": str(small.state.path), "PATH": os.environ["PATH"]}
    stray = subprocess.Popen(["sleep", "600"], env=marker, start_new_session=True)
    try:
        assert len(small.leftovers()) > 3
        small.down()
        assert small.leftovers() == []
        assert stray.wait(timeout=10) != 0
    finally:
        stray.kill()
        stray.wait()


def test_stack_of_a_killed_test_is_removed_by_the_next(small: Stack) -> None:
    abandoned = Stack(Path(tempfile.mkdtemp(prefix="test-", dir=DEFAULT_ROOT)))
    abandoned.up(only=("redis",))
    gone = dataclasses.replace(Process.current(), started_ticks=1)
    gone.save(abandoned.state / "owner.json")
    with temporary_stack(only=("redis",)):
        assert traces(abandoned.state.path) == []
        assert not abandoned.state.path.exists()
        assert running(small)["redis"], "a stack in use is left alone"


def test_settings_reach_the_configuration_and_stay() -> None:
    with temporary_stack(only=("redis",), settings={"builds": {"lease_s": 7}}) as stack:
        stack.up(only=("redis",), settings={"builds": {"concurrency": 1}})
        document = yaml.safe_load(stack.state.configuration.read_text())
        assert document["builds"] == {"lease_s": 7, "concurrency": 1}
        assert document["sandbox"]["hidden_paths"] == [str(stack.state.path)]


def test_failing_service_is_reported_with_the_end_of_its_log(small: Stack) -> None:
    small.down()
    (small.state / "postgresql/data/global/pg_control").rename(small.state / "pg_control")
    with pytest.raises(EnvironmentFault, match=r"start postgresql: it ended(.|\n)*pg_control"):
        small.up(only=("postgresql",))


def test_commands_of_the_program(small: Stack) -> None:
    program = [str(CHECKOUT / "dev/stack"), "--state", str(small.state.path)]
    status = run([*program, "status", "--json"], timeout_s=30, ok=(3,))
    services = {service["name"]: service["pid"] for service in json.loads(status.stdout)}
    assert services["redis"] and not services["api"]
    assert "Ready to accept connections" in run([*program, "logs", "redis"], timeout_s=30).stdout
    printed = run([*program, "env"], timeout_s=30).stdout
    script = f"{printed}\necho $PVC_API_URL $PVC_CONFIG"
    expected = f"http://127.0.0.1:{small.state.port('api')} {small.state.configuration}\n"
    assert run(["sh", "-c", script], timeout_s=30).stdout == expected


@pytest.mark.parametrize(
    "place, reason",
    [
        ("/run/pvc-stack", "libvirtd of the stack sees other directories there"),
        ("/var/lib/" + "x" * 80, "too long for sockets"),
    ],
)
def test_unfit_state_directory_is_refused_before_anything_is_made(place: str, reason: str) -> None:
    with pytest.raises(WrongInput, match=reason):
        Stack(Path(place)).up(only=("redis",))
    assert not Path(place).exists()


def test_state_directory_that_others_cannot_reach_is_refused() -> None:
    closed = Path(tempfile.mkdtemp(prefix="closed-", dir="/var/tmp"))
    try:
        with pytest.raises(WrongInput, match=f"other users cannot pass through {closed}"):
            Stack(closed / "state").up(only=("redis",))
        assert list(closed.iterdir()) == []
    finally:
        closed.rmdir()


def test_disks_of_one_stack_are_not_held_by_the_libvirt_of_another() -> None:
    """Its mount namespace is a copy of the machine's, mounts of other stacks included."""
    with temporary_stack(only=["redis"]) as first:
        image, mountpoint = first.state / "disk.img", first.state / "disk"
        with image.open("wb") as file:
            file.truncate(16 * 1024**2)
        mountpoint.mkdir()
        run(["mkfs.ext4", "-q", str(image)], timeout_s=30)
        run(["mount", "-o", "loop", str(image), str(mountpoint)], timeout_s=30)
        with temporary_stack(only=["libvirt"]):
            run(["umount", str(mountpoint)], timeout_s=30)
            deadline = time.monotonic() + 5
            while attached(first) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert attached(first) == []


def attached(stack: Stack) -> list[str]:
    return [line for line in stack.leftovers() if line.startswith("loop device")]
