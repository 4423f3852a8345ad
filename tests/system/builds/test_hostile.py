"""What a hostile script tries, in a stage and while it is imported: every attempt is refused.

The sandbox has tests of its own (tests/system/sandbox); here the same is tried through the whole product.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from scripts import script

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

# Each is a function body that returns what it got hold of, or raises.
ATTEMPTS = {
    "shadow file": "return open('/etc/shadow').read()",
    "configuration": "return open({configuration!r}).read()",
    "system configuration": "return open('/etc/pvc/pvc.conf').read()",
    "token": "return open({token!r}).read()",
    "remount of the root": "return subprocess.run(['mount', '-o', 'remount,rw', '/'], check=True)",
    "remount of the bind": "return subprocess.run(['mount', '-o', 'remount,bind,rw', '/'], check=True)",
    "write to the root": "return open('/usr/bin/pvc-was-here', 'w')",
    "Redis": "return socket.create_connection(('127.0.0.1', {redis}), 3)",
    "PostgreSQL": "return socket.create_connection(('127.0.0.1', {postgresql}), 3)",
    "Redis by the gateway": "return socket.create_connection(('10.0.2.2', {redis}), 3)",
    "Redis by the host's address": "return socket.create_connection(({address!r}, {redis}), 3)",
    "libvirt": "s = socket.socket(socket.AF_UNIX); s.connect({libvirt!r}); return s",
    "host disk": "return open({disk!r}, 'r+b')",
    "made node": "os.mknod('/tmp/disk', 0o60666, os.stat({disk!r}).st_rdev); return open('/tmp/disk', 'r+b')",
    "other pool file": "return os.listdir({pool!r})",
    "host process": "return os.kill({worker}, signal.SIGKILL)",
    "all processes": "return [p for p in os.listdir('/proc') if p.isdigit() and int(p) == {worker}][0]",
    "kernel setting": "return open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')",
    "trigger": "return open('/proc/sysrq-trigger', 'w').write('b')",
}


@pytest.fixture(scope="module")
def values(cluster: Cluster) -> Iterator[dict[str, object]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # RFC 5737: sends nothing, tells the address packets would leave from
        address = probe.getsockname()[0]
    yield {
        "configuration": cluster.environment["PVC_CONFIG"],
        "token": str(cluster.stack.state.token_file),
        "redis": cluster.config.queue.port,
        "postgresql": cluster.config.database.port,
        "libvirt": cluster.config.hypervisor.libvirt_uri.partition("socket=")[2],
        "pool": cluster.config.storage.pools["vms"].path,
        "worker": cluster.worker_pid(),
        "disk": host_disk(),
        "address": address,
    }


def host_disk() -> str:
    """A block device of the host that is no loop device of ours."""
    names = [entry.name for entry in Path("/sys/block").iterdir()]
    return "/dev/" + next(iter(sorted(name for name in names if not name.startswith("loop"))), "loop0")


@pytest.mark.parametrize("where", ["stage", "import"])
def test_every_attempt_is_refused(cluster: Cluster, values: dict[str, object], where: str) -> None:
    functions = [
        f"def attempt_{number}():\n    {body.format(**values)}"
        for number, body in enumerate(ATTEMPTS.values())
    ]
    driver = """
def try_all():
    for number, name in enumerate(NAMES):
        try:
            got = globals()[f'attempt_{number}']()
        except BaseException as exc:
            print('refused:', name, '-', type(exc).__name__, flush=True)
        else:
            print('GOT:', name, got, flush=True)
"""
    module = "\n".join([*functions, f"NAMES = {list(ATTEMPTS)!r}", driver])
    source = script(module=module + ("\ntry_all()" if where == "import" else ""))
    if where == "stage":
        source = script(module=module, setup="try_all()")
    cluster.make_profile("hostile", source)
    task = cluster.create("hostile1", "hostile", start_vm=False)
    assert cluster.wait(task)["state"] == "SUCCESS"
    log = cluster.log(task)
    refused = {line.split("refused: ")[1].split(" - ")[0] for line in log.splitlines() if "refused: " in line}
    assert "GOT:" not in log
    assert refused == set(ATTEMPTS)
    cluster.change("DELETE", "/vm/hostile1", delete_disks=True)


def test_secrets_reach_the_script_and_nothing_else(cluster: Cluster) -> None:
    source = script(setup="print('length', len(self.arguments['token']), flush=True)")
    declared = 'arguments = (Argument("token", secret=True),)'
    source = source.replace("api_version = 1", f"api_version = 1\n    {declared}")
    source = source.replace("import VMBuilder", "import Argument, VMBuilder")
    cluster.make_profile("secretive", source)
    task = cluster.create("secret1", "secretive", arg=["token=hunter2hunter2"], start_vm=False)
    assert cluster.wait(task)["state"] == "SUCCESS"
    seen = [
        cluster.log(task),
        cluster.request("GET", "/tasks", history=True).text,
        cluster.request("GET", f"/tasks/{task}").text,
        *(path.read_text(errors="replace") for path in (cluster.stack.state / "log").iterdir()),
    ]
    assert "length 14" in seen[0]
    assert not any("hunter2hunter2" in text for text in seen)
    cluster.change("DELETE", "/vm/secret1", delete_disks=True)
