"""Scripts that fail in every way: the build says what, why and where, and nothing is left behind."""

import libvirt
import pytest
from cluster import Cluster
from scripts import STAGES, script

from devstack import libvirt as stack_libvirt

FOREIGN = """<domain type='qemu'><name>bad1</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"""
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]


def fail(cluster: Cluster, source: str, **values: object) -> tuple[dict, str]:
    """Build with a script that must fail; returns the task's error and the log."""
    cluster.make_profile("broken", source, **values)
    task = cluster.create("bad1", "broken")
    ended = cluster.wait(task)
    assert (ended["build_state"], ended["state"]) == ("failed", "FAILURE"), ended
    assert cluster.request("GET", "/vm/bad1").status_code == 404
    return ended["error"], cluster.log(task)


@pytest.mark.parametrize("stage", STAGES)
def test_script_that_raises(cluster: Cluster, stage: str) -> None:
    error, log = fail(cluster, script(**{stage: "raise RuntimeError('out of luck')"}))
    assert error["stage"] == stage
    assert "RuntimeError: out of luck" in error["why"]
    assert "Traceback" in log


@pytest.mark.parametrize("stage", STAGES)
def test_script_that_fails_on_purpose(cluster: Cluster, stage: str) -> None:
    error, _ = fail(cluster, script(**{stage: "self.fail('no mirror')"}))
    assert error["stage"] == stage and "no mirror" in error["why"]


def test_clean_up_of_the_script_runs_once_after_a_failure(cluster: Cluster) -> None:
    source = script(
        install="raise RuntimeError('first')", cleanup="print('tidying', flush=True); raise OSError('second')"
    )
    error, log = fail(cluster, source)
    assert "first" in error["why"], "the first error is the one reported"
    assert log.count("cleanup info tidying") == 1


def test_script_that_raises_while_it_is_imported(cluster: Cluster) -> None:
    error, _ = fail(cluster, script(module="raise RuntimeError('at import')"))
    assert error["stage"] == "load" and "at import" in error["why"]


@pytest.mark.parametrize("stage", ["setup", "create"])
def test_script_that_hangs(cluster: Cluster, stage: str) -> None:
    error, _ = fail(cluster, script(**{stage: "time.sleep(600)"}))
    assert error["stage"] == stage and "not done after 5 s" in error["why"]


def test_script_that_hangs_and_ignores_signals(cluster: Cluster) -> None:
    source = script(
        setup="""
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        time.sleep(600)
        """
    )
    error, _ = fail(cluster, source)
    assert "not done after 5 s" in error["why"]


def test_script_that_floods_its_log(cluster: Cluster) -> None:
    error, log = fail(cluster, script(setup="for n in range(200_000): print('line', n)\nself.fail('done')"))
    assert "done" in error["why"]
    assert "the rest of its log is cut here" in log
    assert len(log) < 500_000


def test_script_that_forks_and_exits(cluster: Cluster) -> None:
    source = script(setup="if os.fork() == 0:\n    time.sleep(600)\nos._exit(0)")
    error, _ = fail(cluster, source)
    assert error["stage"] == "setup" and "ended without an answer" in error["why"]


def test_script_that_leaves_a_process_behind(cluster: Cluster) -> None:
    source = script(
        install="""
        subprocess.Popen(['sh', '-c', 'while :; do echo still here; sleep 1; done'])
        self.fail('enough')
        """
    )
    error, _ = fail(cluster, source)
    assert "enough" in error["why"]


def test_script_that_prints_binary(cluster: Cluster) -> None:
    source = script(setup="os.write(1, bytes(range(256)) + b'\\n\\xff\\xfe\\nplain\\n')\nself.fail('after')")
    error, log = fail(cluster, source)
    assert "after" in error["why"]
    assert "setup info plain" in log and "\0" not in log


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("None", "must return"),
        ("5", "must return"),
        ("'<domain'", "well-formed"),
        ("'<network/>'", "root element"),
        ("self.domain_xml().replace('bad1_sda', 'other_sda')", "not one of this build's"),
        ("self.domain_xml().replace('<devices>', '<devices><filesystem/>')", "schema"),
        ("'x' * 1_000_000", "larger than"),
    ],
)
def test_script_that_returns_a_bad_document(cluster: Cluster, returned: str, reason: str) -> None:
    error, _ = fail(cluster, script(create=f"return {returned}"))
    assert error["stage"] == "create" and reason in error["why"]


def test_libvirt_refuses_before_the_long_work(cluster: Cluster) -> None:
    source = script(create="return self.domain_xml().replace('q35', 'nonsense')")
    error, _ = fail(cluster, source)
    assert error["stage"] == "create" and "define domain bad1" in error["what"]


@pytest.mark.parametrize(
    "verb", ["volume.create", "volume.map", "volume.unmap", "volume.mount", "volume.clone"]
)
def test_script_that_asks_for_another_vm_s_volume(cluster: Cluster, verb: str) -> None:
    ask = f"self._channel.request('{verb}', pool='vms', volume='db1_sda', path='/tmp/x', filesystem='ext4')"
    error, _ = fail(cluster, script(prepare=ask))
    assert error["stage"] == "prepare" and "not one of this build's volumes" in error["why"]


def test_script_that_asks_for_what_the_broker_does_not_offer(cluster: Cluster) -> None:
    error, _ = fail(cluster, script(setup="self._channel.request('host.reboot')"))
    assert "the broker offers only" in error["why"]


def test_script_that_speaks_nonsense_to_the_broker(cluster: Cluster) -> None:
    error, _ = fail(cluster, script(setup="self._channel._connection.sendall(b'{}{}{}\\n')\ntime.sleep(3)"))
    assert error["stage"] == "setup" and "not JSON" in error["why"]


def test_script_that_makes_no_volume(cluster: Cluster) -> None:
    error, _ = fail(cluster, script(prepare="return"))
    assert "has not made vms/bad1_sda" in error["why"]


def test_script_that_asks_to_unmap_what_is_mounted(cluster: Cluster) -> None:
    """It is told to unmount first, and can go on after that."""
    source = script(
        prepare="""
        self.volumes.create(); self.volumes.format(); self.volumes.mount('/tmp/target')
        try:
            self._channel.request('volume.unmap', pool='vms', volume='bad1_sda')
        except Exception as exc:
            print('refused', exc, flush=True)
        self.volumes.release()
        self.fail('all released')
        """
    )
    disks = {"sda": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/"}}
    error, log = fail(cluster, source, disks=disks)
    assert "refused" in log and "still mounted" in log
    assert "all released" in error["why"]


@pytest.mark.parametrize("state", ["defined", "running"])
def test_domain_of_somebody_else_is_left_alone(cluster: Cluster, state: str) -> None:
    connection = libvirt.open(stack_libvirt.uri(cluster.stack.state))
    foreign = connection.defineXML(FOREIGN)
    try:
        if state == "running":
            foreign.create()
        error, _ = fail(cluster, script())
        assert "has a domain of this name" in error["why"]
        assert foreign.isActive() == (state == "running")
    finally:
        if foreign.isActive():
            foreign.destroy()
        foreign.undefine()
        connection.close()


def test_disk_larger_than_the_pool_is_refused_before_the_build(cluster: Cluster) -> None:
    cluster.make_profile("huge", script(), disks={"sda": {"disk_size": 16_000}})
    answer = cluster.request("POST", "/provisioner/create", name="huge1", profile="huge")
    assert answer.status_code == 400 and "pool.vms" in answer.text


def test_memory_the_node_does_not_have_is_refused_before_the_build(cluster: Cluster) -> None:
    cluster.make_profile("broken", script())
    cluster.ensure("/provisioner/template/system", "giant", vcpus=1, vram=1_000_000, serial=True, vnc=False)
    parts = cluster.get("/provisioner/profile", limit="^broken$")[0]
    values = {key: parts[key] for key in ("script", "network_template", "storage_template")}
    cluster.ensure(
        "/provisioner/profile", "giant", profile_type="provisioner", system_template="giant", **values
    )
    answer = cluster.request("POST", "/provisioner/create", name="giant1", profile="giant")
    assert answer.status_code == 400 and "memory" in answer.text
