"""RBD volumes as block devices: content, exclusion, what a killed process leaves, a silent cluster."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from storage_helpers import (
    GIB,
    MIB,
    TEXT,
    everything_in_rbd,
    fill,
    rbd_account,
    rbd_command,
    rbd_content,
    remove_everything,
)

from devstack import Stack
from devstack import ceph as stack_ceph
from devstack.ceph import CephOsd
from pvccommon.errors import Busy, EnvironmentFault, NoSpace, WrongState
from pvccommon.storage import add_partition
from pvccommon.storage import ceph as ceph_connection
from pvccommon.storage.image_users import ImageUsers, Watcher
from pvccommon.storage.rbd import RbdPool

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def pool(ceph: Stack) -> Iterator[RbdPool]:
    """A pool with a volume web1_sda of 64 MiB that begins with TEXT."""
    pool = RbdPool("vms", rbd_account(ceph))
    fill(pool, "web1_sda", size_bytes=64 * MIB)
    yield pool
    remove_everything(pool)
    assert everything_in_rbd(ceph) == []


def test_a_file_system_survives_on_a_clone(pool: RbdPool, ceph: Stack) -> None:
    pool.clone_volume("web1_sda", "web2_sda", size_bytes=128 * MIB)
    with pool.open_device("web2_sda") as device:
        assert os.pread(device.fd, len(TEXT), 0) == TEXT
        add_partition(device.fd, 1, MIB, 100 * MIB)
        in_private_mounts(
            f"mkfs.ext4 -qF {device.path}p1 && mount {device.path}p1 /mnt"
            " && cp -a /usr/share/doc/apt /mnt && umount /mnt"
        )
    with pool.open_device("web2_sda", read_only=True) as device:
        add_partition(device.fd, 1, MIB, 100 * MIB)
        in_private_mounts(
            f"mount -o ro {device.path}p1 /mnt && diff -r /usr/share/doc/apt /mnt/apt && umount /mnt"
        )
    content = rbd_content(ceph, "web2_sda")
    assert content == b"".join(pool.export_stream("web2_sda"))
    assert rbd_content(ceph, "web1_sda") == TEXT.ljust(64 * MIB, b"\0"), "the source did not notice"


def test_one_writer_or_several_readers(pool: RbdPool) -> None:
    other = RbdPool("vms", pool._account)
    with pool.open_device("web1_sda"):
        for refused in (
            lambda: other.open_device("web1_sda").__enter__(),
            lambda: other.open_device("web1_sda", read_only=True).__enter__(),
            lambda: next(other.export_stream("web1_sda")),
            lambda: other.delete_volume("web1_sda"),
            lambda: other.rename_volume("web1_sda", "web2_sda"),
            lambda: other.resize_volume("web1_sda", 128 * MIB),
            lambda: other.clone_volume("web1_sda", "web2_sda"),
            lambda: other.flatten_volume("web1_sda"),
            lambda: other.disk_source("web1_sda"),
            lambda: other.disk_source("web1_sda", read_only=True),
        ):
            with pytest.raises(Busy):
                refused()
        other.create_snapshot("web1_sda", "while-open")
    with pool.open_device("web1_sda", read_only=True), other.open_device("web1_sda", read_only=True):
        stream = other.export_stream("web1_sda")
        assert next(stream).startswith(TEXT)
        with pytest.raises(Busy):
            other.open_device("web1_sda").__enter__()
        with pytest.raises(Busy):
            other.disk_source("web1_sda")
        assert other.disk_source("web1_sda", read_only=True), "a domain's CD-ROM is one more reader"
        stream.close()
    with pool.open_device("web1_sda"):
        pass


def test_a_domain_s_qemu_keeps_us_out(pool: RbdPool) -> None:
    account = pool._account
    name = f"rbd:vms/web1_sda:id={account.user}:conf={account.conf}:keyring={account.keyring}"
    domain = subprocess.Popen(
        ["qemu-io", "-f", "raw", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert domain.stdin is not None and domain.stdout is not None
    domain.stdin.write(b"write 0 512\n")
    domain.stdin.flush()
    assert b"wrote" in domain.stdout.readline()
    for refused in (
        lambda: pool.open_device("web1_sda").__enter__(),
        lambda: pool.open_device("web1_sda", read_only=True).__enter__(),
        lambda: pool.delete_volume("web1_sda"),
    ):
        with pytest.raises(Busy):
            refused()
    pool.disk_source("web1_sda")  # its own; it runs already
    domain.communicate()
    with pool.open_device("web1_sda"):
        pass


@pytest.mark.parametrize("read_only", [False, True])
def test_a_killed_opener_is_fenced_at_once(pool: RbdPool, read_only: bool) -> None:
    program = f"""
        with pool.open_device("web1_sda", read_only={read_only}):
            print("opened", flush=True)
            time.sleep(60)
        """
    with started(pool, program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"opened\n"
        process.kill()
    begun = time.monotonic()
    with pool.open_device("web1_sda") as device:
        assert os.pread(device.fd, len(TEXT), 0) == TEXT
    pool.delete_volume("web1_sda")
    assert time.monotonic() - begun < 10, "a client that is not fenced is waited for, 30 s"


def test_what_a_killed_import_or_clone_leaves_is_swept(pool: RbdPool, ceph: Stack) -> None:
    importing = """
        class Stream:
            left = 3
            def read(self, size):
                self.left -= 1
                return os.urandom(size) if self.left else os.kill(os.getpid(), signal.SIGKILL)
        pool.import_stream("iso", Stream(), 2**26)
        """
    cloning = """
        pool._clone = lambda *words, **options: os.kill(os.getpid(), signal.SIGKILL)
        pool.clone_volume("web1_sda", "web2_sda")
        """
    before = everything_in_rbd(ceph)
    for deadly in (importing, cloning):
        with started(pool, deadly) as process:
            assert process.wait(30) == -signal.SIGKILL
    assert [volume.name for volume in pool.list_volumes()] == ["web1_sda"]
    assert pool.list_snapshots("web1_sda") == []
    deadline = time.monotonic() + 15
    while everything_in_rbd(ceph) != before and time.monotonic() < deadline:
        pool.sweep()
        time.sleep(1)
    assert everything_in_rbd(ceph) == before
    assert pool.sweep() == []
    begun = time.monotonic()
    pool.rename_volume("web1_sda", "web2_sda")
    assert time.monotonic() - begun < 10, "the lock of a dead process is not waited for"


def test_a_large_image_is_cloned_and_mapped_within_a_second(pool: RbdPool, ceph: Stack) -> None:
    pool.create_volume("golden", 20 * GIB)
    with pool.open_device("golden") as device:
        os.pwrite(device.fd, os.urandom(64 * MIB), 0)
    pool.create_snapshot("golden", "base")
    pool.protect_snapshot("golden", "base")
    seconds = []
    for number in range(3):
        begun = time.monotonic()
        clone = pool.clone_snapshot("golden", "base", f"web{number + 2}_sda")
        with pool.open_device(clone.name):
            seconds.append(time.monotonic() - begun)
    assert min(seconds) < 1, seconds
    assert clone.used_bytes == 0
    used = rbd_command(ceph, "du", "--format", "json", clone.name).stdout
    assert b'"used_size":0' in used.replace(b" ", b""), used


def test_a_full_pool_refuses_and_keeps_nothing(pool: RbdPool, ceph: Stack) -> None:
    before = everything_in_rbd(ceph)
    stack_ceph.ceph(ceph.state, "osd", "pool", "set-quota", "vms", "max_bytes", str(MIB))
    try:
        for refused in (
            lambda: fill(pool, "iso"),
            lambda: pool.create_volume("web2_sda", MIB),
            lambda: pool.clone_volume("web1_sda", "web2_sda"),
        ):
            with pytest.raises(NoSpace) as caught:
                refused()
            assert caught.value.hint
        assert everything_in_rbd(ceph) == before
    finally:
        stack_ceph.ceph(ceph.state, "osd", "pool", "set-quota", "vms", "max_bytes", "0")
        stack_ceph.wait_until_full(ceph.state, full=False)


def test_volumes_can_be_deleted_from_a_full_pool(pool: RbdPool, ceph: Stack) -> None:
    pool.clone_volume("web1_sda", "web2_sda")
    pool.create_volume("web3_sda", MIB)
    pool.create_snapshot("web3_sda", "monday")
    with full(ceph):
        started = time.monotonic()
        for refused in (
            lambda: pool.create_volume("web4_sda", MIB),
            lambda: pool.open_device("web1_sda").__enter__(),
            lambda: pool.disk_source("web1_sda"),
        ):
            with pytest.raises(NoSpace):
                refused()
        for name in ("web3_sda", "web2_sda", "web1_sda"):
            pool.delete_volume(name)
        assert everything_in_rbd(ceph) == []
        assert time.monotonic() - started < 5, "nothing waited for space"


def test_a_write_to_a_pool_that_fills_up_fails_instead_of_waiting(pool: RbdPool, ceph: Stack) -> None:
    with ExitStack() as filled:
        with pytest.raises(NoSpace) as caught, pool.open_device("web1_sda") as device:
            filled.enter_context(full(ceph))
            started = time.monotonic()
            os.pwrite(device.fd, os.urandom(8 * MIB), 32 * MIB)
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(device.fd)
        assert "is full" in caught.value.why
        assert time.monotonic() - started < 40
        pool.delete_volume("web1_sda")  # nobody has it open any more


@contextmanager
def full(ceph: Stack) -> Iterator[None]:
    """A pool whose quota is used up, and that the cluster knows to be full."""
    stack_ceph.set_quota(ceph.state, objects=1)
    try:
        stack_ceph.wait_until_full(ceph.state)
        yield
    finally:
        stack_ceph.set_quota(ceph.state, objects=0)
        stack_ceph.wait_until_full(ceph.state, full=False)


def test_a_cluster_that_does_not_answer_is_an_error_in_time(
    pool: RbdPool, ceph: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceph_connection.disconnect(pool._account)
    with ExitStack() as impatient:
        impatient.callback(ceph_connection.disconnect, pool._account)
        monkeypatch.setitem(ceph_connection.SETTINGS, "rados_osd_op_timeout", "2")
        pool.stat_volume("web1_sda")
        impatient.enter_context(stopped(ceph))
        for call in (
            lambda: pool.stat_volume("web1_sda"),
            lambda: pool.create_volume("web2_sda", MIB),
            lambda: pool.delete_volume("web1_sda"),
            lambda: pool.list_volumes(),
        ):
            begun = time.monotonic()
            with pytest.raises(EnvironmentFault, match="does not answer") as caught:
                call()
            assert caught.value.hint and time.monotonic() - begun < 10
    monkeypatch.undo()
    assert pool.stat_volume("web1_sda").size_bytes == 64 * MIB


def test_a_connection_that_was_fenced_is_made_anew(pool: RbdPool) -> None:
    cluster = ceph_connection.connect(pool._account)
    cluster.fence(str(cluster.rados.get_addrs()))
    deadline = time.monotonic() + 10
    while ceph_connection.connect(pool._account) is cluster and time.monotonic() < deadline:
        try:
            pool.stat_volume("web1_sda")
        except EnvironmentFault as exc:
            assert "fenced" in exc.why
        time.sleep(0.1)
    assert pool.stat_volume("web1_sda").size_bytes == 64 * MIB


def test_a_device_by_loop_is_refused_with_a_hint(pool: RbdPool) -> None:
    wrong = RbdPool("vms", pool._account, mapping="loop")
    with pytest.raises(WrongState) as caught, wrong.open_device("web1_sda"):
        pass
    assert "storage.mapping" in caught.value.hint


def test_a_note_about_a_client_that_is_gone_counts_for_nothing(pool: RbdPool) -> None:
    cluster = ceph_connection.connect(pool._account)
    users = ImageUsers(cluster, "vms")
    with pool._open("web1_sda", "test") as image:
        image_id = image.id()
    with ExitStack() as forgotten:
        forgotten.enter_context(users.noted(image_id, Watcher(999_999_999, "10.0.0.1:0/1"), "w"))
        pool.rename_volume("web1_sda", "web2_sda")


@contextmanager
def started(pool: RbdPool, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of its own with a `pool`. Not a fork: that would inherit librados' random numbers."""
    account = pool._account
    head = (
        "import os, signal, time\n"
        "from pvccommon.storage.ceph import CephAccount\n"
        "from pvccommon.storage.rbd import RbdPool\n"
        f"pool = RbdPool('vms', CephAccount({account.user!r}, {account.conf!r}, {account.keyring!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    argv = [sys.executable, "-c", head + textwrap.dedent(program)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def stopped(stack: Stack) -> Iterator[None]:
    """The OSD is there and does not answer."""
    process = CephOsd(stack.state).process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def in_private_mounts(script: str) -> None:
    subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script], check=True)
