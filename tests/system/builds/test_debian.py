"""The whole promise: the debootstrap builder makes a Debian VM that boots to its login prompt."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import NOOP, Cluster

pytestmark = pytest.mark.system

VM = "deb1"
BUILDER = NOOP.with_name("debootstrap.py")
DISKS = {
    "sda": {"disk_size": 3, "filesystem": "ext4", "mountpoint": "/"},
    "sdb": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/srv"},
    "sdc": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/srv/data"},
    "sdd": {"disk_size": 1, "filesystem": "swap"},
}
BOOT_TIMEOUT_S = 400


@pytest.fixture(scope="module", params=["directory_cluster", "ceph_cluster"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Everything here is true for both kinds of pools."""
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def debian(cluster: Cluster) -> Iterator[str]:
    """The VM, built by the command line client as a user would; removed at the end."""
    cluster.make_profile("debian", BUILDER.read_text(), disks=DISKS)
    arguments = ("-a", "packages=dbus,iproute2,netbase", "-a", "user=operator")
    argv = ["pvc", "provisioner", "create", VM, "debian", *arguments]
    options = {"env": cluster.environment, "capture_output": True, "text": True, "timeout": 900}
    done = subprocess.run(argv, check=False, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    yield done.stderr
    cluster.change("DELETE", f"/vm/{VM}", delete_disks=True)


def wait_for_console(cluster: Cluster, text: str) -> str:
    """The console's log when it shows a text; fails with what it shows instead."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while True:
        console = str(cluster.get(f"/vm/{VM}/console", lines=2000)["data"])
        if text in console:
            return console
        assert time.monotonic() < deadline, f"no {text!r} after {BOOT_TIMEOUT_S} s:\n{console[-3000:]}"
        time.sleep(1)


def test_progress_was_shown_stage_by_stage(debian: str) -> None:
    for words in ("prepare", "install", "mmdebstrap"):
        assert words in debian


def test_guest_reaches_its_login_prompt_with_all_disks_mounted(cluster: Cluster, debian: str) -> None:
    console = wait_for_console(cluster, f"{VM} login:")
    for failure in ("Dependency failed", "emergency mode", "Kernel panic"):
        assert failure not in console
    assert "Mounted \x1b[0;1;39msrv.mount" in console or "/srv" in console


def test_nothing_of_the_build_is_left_while_the_vm_runs(cluster: Cluster, debian: str) -> None:
    assert cluster.helpers() == set()
    assert [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "web1_" in line] == []


def test_disks_cannot_be_mapped_while_the_vm_runs(cluster: Cluster, debian: str) -> None:
    """Two writers would destroy the file system; the pool sees that QEMU holds the volume."""
    from pvccommon.errors import Busy
    from pvccommon.storage import pools_from_config

    pool = pools_from_config(cluster.config)["vms"]
    with pytest.raises(Busy), pool.open_device(f"{VM}_sda"):
        pass


def test_console_is_not_readable_by_everybody(cluster: Cluster, debian: str) -> None:
    assert cluster.config.hypervisor.console_directory
    directory = Path(cluster.config.hypervisor.console_directory)
    assert [path for path in directory.iterdir() if path.stat().st_mode & 0o004] == []
