"""Builds that succeed, and requests that are refused before anything is made."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import NOOP, Cluster
from command_line import pvc, run_pvc
from lxml import etree
from scripts import script

pytestmark = pytest.mark.system


@pytest.fixture
def noop(cluster: Cluster) -> str:
    cluster.make_profile("noop", NOOP.read_text(), disks={"sda": {"disk_size": 1}, "sdb": {"disk_size": 2}})
    return "noop"


def remove(cluster: Cluster, vm: str) -> None:
    cluster.change("DELETE", f"/vm/{vm}", delete_disks=True)


@pytest.mark.usefixtures("no_leaks")
def test_vm_runs_from_its_own_blank_disks_and_is_removed_with_them(cluster: Cluster, noop: str) -> None:
    task = cluster.build("web1", noop)
    assert (task["state"], task["status"]) == ("SUCCESS", "VM web1 is running on node hv1")
    assert [stage["stage"] for stage in task["stages"]][2:] == [
        "load", "setup", "create", "prepare", "install", "cleanup", "start",
    ]  # fmt: skip
    vm = cluster.get("/vm/web1")[0]
    assert (vm["state"], vm["memory"], vm["vcpu"]) == ("start", 768, 1)
    domain = etree.fromstring(cluster.domains()["web1"])
    sources = [disk.find("source") for disk in domain.findall("devices/disk")]
    for disk, source in zip(("sda", "sdb"), sources, strict=True):
        assert (source.get("file") or source.get("name")) == cluster.pool.disk_source(f"web1_{disk}").path
    sizes = [cluster.pool.stat_volume(f"web1_{disk}").size_bytes for disk in ("sda", "sdb")]
    assert sizes == [2**30, 2 * 2**30]
    remove(cluster, "web1")
    assert cluster.request("GET", "/vm/web1").status_code == 404


@pytest.mark.usefixtures("no_leaks")
def test_vm_can_be_defined_without_being_started(cluster: Cluster, noop: str) -> None:
    assert cluster.build("web2", noop, start_vm=False)["status"] == "VM web2 is defined on node hv1"
    assert cluster.get("/vm/web2")[0]["state"] == "stop"
    for state in ("start", "stop", "start", "disable"):
        cluster.change("POST", "/vm/web2/state", state=state)
        assert cluster.get("/vm/web2")[0]["state"] == state
    remove(cluster, "web2")


@pytest.mark.usefixtures("no_leaks")
def test_volumes_can_be_made_without_a_domain(cluster: Cluster, noop: str) -> None:
    task = cluster.build("web3", noop, define_vm=False)
    assert task["build_state"] == "succeeded", task
    assert "web3" not in cluster.domains()
    assert cluster.request("GET", "/vm/web3").status_code == 404
    for disk in ("sda", "sdb"):
        cluster.pool.delete_volume(f"web3_{disk}")


@pytest.mark.usefixtures("no_leaks")
def test_only_one_of_many_equal_requests_is_accepted(cluster: Cluster, noop: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        wanted = {"name": "twin", "profile": noop}
        answers = list(pool.map(lambda _: cluster.request("POST", "/provisioner/create", **wanted), range(8)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == 1, [answer.text for answer in answers]
    assert {answer.status_code for answer in answers} == {202, 400}
    assert cluster.wait(accepted[0].json()["task_id"])["state"] == "SUCCESS"
    remove(cluster, "twin")


@pytest.mark.usefixtures("no_leaks")
def test_builds_run_side_by_side_and_each_once(cluster: Cluster, noop: str) -> None:
    tasks = {f"many{n}": cluster.create(f"many{n}", noop, start_vm=False) for n in range(6)}
    for vm, task in tasks.items():
        assert cluster.wait(task)["state"] == "SUCCESS"
        assert cluster.log(task).count("made volume") == 2
        remove(cluster, vm)


@pytest.mark.usefixtures("no_leaks")
def test_disk_can_be_a_clone_of_another_vm_s(cluster: Cluster, noop: str) -> None:
    assert cluster.build("gold", noop, start_vm=False)["state"] == "SUCCESS"
    cluster.make_profile(
        "cloner", NOOP.read_text(), disks={"sda": {"source_volume": "gold_sda"}, "sdb": {"disk_size": 1}}
    )
    task = cluster.build("copy", "cloner", start_vm=False)
    assert task["state"] == "SUCCESS", task
    copy = cluster.pool.stat_volume("copy_sda")
    assert copy.size_bytes == 2**30 and copy.used_bytes < 2**20, "a clone is not a copy"
    assert "backingStore" in cluster.domains()["copy"]
    for vm in ("copy", "gold"):  # cloning moved the original's file below both
        cluster.change("POST", f"/vm/{vm}/state", state="start")
        assert cluster.get(f"/vm/{vm}")[0]["state"] == "start"
    remove(cluster, "copy")
    remove(cluster, "gold")


@pytest.mark.usefixtures("no_leaks")
def test_waiting_build_is_cancelled_before_it_makes_anything(cluster: Cluster) -> None:
    cluster.make_profile("slow", script(install="print('here', flush=True); time.sleep(60)"))
    running = [cluster.create(f"slow{n}", "slow") for n in range(2)]  # as many as run at one time
    waiting = cluster.create("waiting", "slow")
    cluster.wait_for_stage(running[1], "install", "here")
    cluster.change("POST", f"/tasks/{waiting}/cancel")
    assert cluster.get(f"/tasks/{waiting}")["build_state"] == "cancelled"
    for task in running:
        started = time.monotonic()
        cluster.change("POST", f"/tasks/{task}/cancel")
        ended = cluster.wait(task, timeout_s=20)
        assert (ended["build_state"], ended["state"]) == ("cancelled", "FAILURE")
        assert time.monotonic() - started < 5, "a cancel takes effect within seconds"
    time.sleep(1)
    assert cluster.get(f"/tasks/{waiting}")["build_state"] == "cancelled", "a late delivery must not run it"


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("delay_s", [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
def test_accepted_cancel_cancels_whenever_it_comes(cluster: Cluster, noop: str, delay_s: float) -> None:
    task = cluster.create("fleeting", noop)
    time.sleep(delay_s)
    answer = cluster.request("POST", f"/tasks/{task}/cancel")
    ended = cluster.wait(task, timeout_s=20)
    assert ended["build_state"] == ("cancelled" if answer.status_code == 200 else "succeeded"), ended
    if ended["build_state"] == "succeeded":
        remove(cluster, "fleeting")


@pytest.mark.usefixtures("no_leaks")
def test_plan_makes_nothing_and_names_every_check(cluster: Cluster, noop: str) -> None:
    planned = cluster.change("POST", "/provisioner/plan", name="never", profile=noop)
    assert planned["ok"] and planned["node"] == "hv1"
    assert {"name", "node", "memory", "pool.vms"} <= {check["name"] for check in planned["checks"]}


@pytest.mark.usefixtures("no_leaks")
def test_refused_request_lists_all_problems_and_makes_nothing(cluster: Cluster, noop: str) -> None:
    before = cluster.get("/tasks", history=True)["builds"]
    wanted = {"name": "-Bad-", "profile": noop, "arg": ["nonsense=1", "x"]}
    answer = cluster.request("POST", "/provisioner/create", **wanted)
    assert answer.status_code == 400
    assert len(answer.json()["problems"]) == 3, answer.text
    assert cluster.get("/tasks", history=True)["builds"] == before


@pytest.mark.usefixtures("no_leaks")
def test_command_line_follows_a_build_to_its_end(cluster: Cluster, noop: str) -> None:
    assert "VM cli1 is running on node hv1" in pvc(cluster, "provisioner", "create", "cli1", noop)
    again = run_pvc(cluster, "provisioner", "create", "cli1", noop)
    assert again.returncode != 0
    assert "VM cli1 exists already" in again.stderr
    remove(cluster, "cli1")
