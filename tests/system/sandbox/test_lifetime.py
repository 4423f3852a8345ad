"""How sandboxes begin and end, and that nothing is left behind, whoever is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pvccommon.errors import EnvironmentFault, PvcError, WrongInput
from pvcnoded.sandbox.sandbox import SandboxSpec, open_sandbox

from .conftest import FIRST_UID, Loop, LoopMaker, Opener, give, import_paths

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.system

# A worker of its own process: opens a sandbox, mounts a disk in it, says so, and waits to be killed.
WORKER = """
import os, sys, time
from pvcnoded.sandbox.sandbox import SandboxSpec, open_sandbox
name, major, minor, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
spec = SandboxSpec(build_id="killed", first_uid=uid, sdk_zip=b"", network=True)
script = "mkfs.ext4 -q /dev/$0; touch /tmp/made; echo made >&3; sleep 1000 & setsid sleep 1000 & sleep 1000"
with open_sandbox(spec, command=["/bin/sh", "-c", "read x <&3; " + script, name]) as sandbox:
    sandbox.add_device(name, major, minor, ["rbd/vms/disk"])
    sandbox.channel.sendall(b"go\\n")
    sandbox.channel.recv(100)
    sandbox.mount("/dev/" + name, "/mnt", "ext4")
    print(sandbox.init_pid, sandbox._keeper.pid, flush=True)
    time.sleep(1000)
"""


def processes() -> set[str]:
    """Processes of these tests' sandboxes, by user id, and keepers; other builds' do not count."""
    found = set()
    for directory in Path("/proc").iterdir():
        try:
            status = (directory / "status").read_text()
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        uid = int(status.split("\nUid:\t")[1].split()[0])
        if uid >= FIRST_UID or (b"keeper.main(" in command and str(ROOT).encode() in command):
            found.add(f"{directory.name} {command!r} {status.splitlines()[2]}")
    return found


def abandoned_groups() -> set[str]:
    """Control groups whose keeper is gone."""
    groups = Path("/sys/fs/cgroup").glob("**/pvc-sandbox.*")
    return {str(path) for path in groups if not Path(f"/proc/{path.name.split('.')[1]}").exists()}


def leftovers() -> dict[str, set[str]]:
    """Everything a sandbox could leave on the host."""
    places = ("/tmp", "/run", "/var/tmp", "/dev/shm")
    names = {str(path) for place in places for path in Path(place).iterdir()}
    return {
        "processes": processes(),
        "mounts": {
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - fuse" not in line
        },
        "groups": abandoned_groups(),
        "names": {name for name in names if "pvc" in name},
        "links": set(subprocess.check_output(["ip", "-o", "link"], text=True).splitlines()),
    }


def assert_nothing_is_left(before: dict[str, set[str]], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (left := difference(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def difference(before: dict[str, set[str]]) -> dict[str, set[str]]:
    now = leftovers()
    return {kind: now[kind] - before[kind] for kind in before if now[kind] - before[kind]}


@pytest.fixture
def before() -> dict[str, set[str]]:
    return leftovers()


@pytest.fixture
def worker(disk: Loop, spec: SandboxSpec) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A worker with a running sandbox; its process, the sandbox's first process, the keeper."""
    argv = [sys.executable, "-c", WORKER, disk.name, str(disk.major), str(disk.minor), str(spec.first_uid)]
    environment = {**os.environ, "PYTHONPATH": import_paths()}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        init, keeper = map(int, process.stdout.readline().split())
        yield process, init, keeper
        process.kill()


@pytest.mark.parametrize("victim", ["worker", "keeper", "init", "bwrap"])
def test_nothing_is_left_after_kill(
    before: dict[str, set[str]], worker: tuple[subprocess.Popen[str], int, int], disk: Loop, victim: str
) -> None:
    process, init, keeper = worker
    assert len(difference(before)["processes"]) >= 5
    bwrap = int(Path(f"/proc/{init}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill({"worker": process.pid, "keeper": keeper, "init": init, "bwrap": bwrap}[victim], signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{init}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{init}").exists()
    process.kill()
    process.wait()
    if victim == "keeper":  # it could not remove its control groups; the next sandbox's keeper does
        with open_sandbox(replace_uid(), command=["/bin/true"]) as sandbox:
            sandbox.wait(10)
    assert_nothing_is_left(before)
    while time.monotonic() < deadline:
        try:
            return os.close(os.open(disk.path, os.O_RDWR | os.O_EXCL))
        except OSError:  # the kernel ends the mounts of a killed process in the background
            time.sleep(0.02)
    pytest.fail("the disk is still in use")


def replace_uid() -> SandboxSpec:
    return SandboxSpec(build_id="next", first_uid=4_100_000_000, sdk_zip=b"", network=False)


def test_a_normal_end_leaves_nothing(before: dict[str, set[str]], opened: Opener, loop: LoopMaker) -> None:
    disk = loop(filesystem="ext4")
    with opened(network=True) as inside:
        give(inside, disk)
        inside.sandbox.mount(disk.path, "/mnt", "ext4")
        inside.good("sleep 1000 > /dev/null 2>&1 & setsid sleep 1000 > /dev/null 2>&1 &")
    assert_nothing_is_left(before, timeout_s=0)


def test_an_exception_in_the_block_ends_it(before: dict[str, set[str]], opened: Opener) -> None:
    with pytest.raises(ZeroDivisionError), opened(network=True):
        raise ZeroDivisionError
    assert_nothing_is_left(before, timeout_s=0)


def test_exit_status_and_output_arrive(spec: SandboxSpec) -> None:
    with open_sandbox(spec, command=["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]) as sandbox:
        assert sandbox.wait(10) == 7
        assert sandbox.wait(0) == 7
        assert os.read(sandbox.output, 100) == b"out\nerr\n"
        assert os.read(sandbox.output, 100) == b""
        assert sandbox.channel.recv(1) == b""
        with pytest.raises(PvcError):
            sandbox.mount("/dev/none", "/mnt", "ext4")


def test_waiting_has_a_time_limit(spec: SandboxSpec) -> None:
    with open_sandbox(spec, command=["/bin/sleep", "100"]) as sandbox:
        assert sandbox.wait(0.05) is None
        timer = threading.Timer(0.1, sandbox.kill)
        timer.start()
        started = time.monotonic()
        assert sandbox.wait(10) is not None
        assert time.monotonic() - started < 5
        timer.join()


def test_the_sdk_is_importable(spec: SandboxSpec, tmp_path: Path) -> None:
    import zipfile

    archive = tmp_path / "sdk.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("vmbuilder/__init__.py", "")
        file.writestr(
            "vmbuilder/runner.py", "import os\nprint('runner', __file__, os.environ['PVC_CHANNEL_FD'])"
        )
    with open_sandbox(replace(spec, sdk_zip=archive.read_bytes())) as sandbox:
        assert sandbox.wait(10) == 0
        assert os.read(sandbox.output, 100) == b"runner /run/pvc/sdk.zip/vmbuilder/runner.py 3\n"


def test_start_errors_say_what_happened(spec: SandboxSpec, before: dict[str, set[str]]) -> None:
    with open_sandbox(spec, command=["/no/such/program"]) as sandbox:
        assert sandbox.wait(10) not in (0, None)
        assert b"/no/such/program" in os.read(sandbox.output, 1000)
    with pytest.raises(WrongInput, match="environment"), open_sandbox(replace(spec, environment={"a b": ""})):
        pass
    with pytest.raises(WrongInput, match="host's own users"), open_sandbox(replace(spec, first_uid=1000)):
        pass
    with pytest.raises(WrongInput, match="not-a-network"):
        with open_sandbox(replace(spec, network=True, denied_networks=("not-a-network",))):
            pass
    with pytest.raises(EnvironmentFault, match="whole file system"):
        with open_sandbox(replace(spec, hidden_paths=("/",)), command=["/bin/true"]):
            pass
    assert_nothing_is_left(before)


def test_several_at_once_from_threads(spec: SandboxSpec, before: dict[str, set[str]]) -> None:
    results: list[int | None] = []

    def build(number: int) -> None:
        mine = replace(spec, first_uid=4_200_000_000 + number * 65536, network=True)
        with open_sandbox(mine, command=["/bin/sh", "-c", f"exit {number}"]) as sandbox:
            results.append(sandbox.wait(30))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status in results if status is not None) == [1, 2, 3, 4]
    assert_nothing_is_left(before)


def test_terminals_work_inside(opened: Opener) -> None:
    with opened() as inside:
        out = inside.python("import os\nmaster, slave = os.openpty()\nprint(os.ttyname(slave))").output
        assert out.strip() == "/dev/pts/0"
        inside.good("mkdir /tmp/d && mount --bind /dev /tmp/d && test -c /tmp/d/null && umount /tmp/d")
        inside.good(
            "mount --rbind /dev /tmp/d && umount -R /tmp/d && mount -t proc proc /tmp/d && umount /tmp/d"
        )
