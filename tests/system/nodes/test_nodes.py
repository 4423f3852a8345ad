"""Several nodes: what happens to the builds of one that dies, freezes, or comes back."""

import time

import pytest
from cluster import NOOP, processes
from pair import DISKS, HOLDING, Pair, wait_for
from scripts import script
from sqlalchemy import select

from pvccommon.models import Build

pytestmark = pytest.mark.system


def test_vms_are_placed_on_both_nodes(pair: Pair) -> None:
    pair.make("spread", NOOP.read_text(), node_selector="vms")
    tasks = {vm: pair.create(vm, "spread") for vm in ("even1", "even2")}
    ended = [pair.wait(task) for task in tasks.values()]
    assert {task["status"] for task in ended} == {
        "VM even1 is running on node hv1",
        "VM even2 is running on node hv2",
    }
    assert (pair.domain_on(1, "even1"), pair.domain_on(2, "even2")) == ("running", "running")
    for vm in tasks:
        pair.change("DELETE", f"/vm/{vm}", delete_disks=True)


def test_builds_of_a_dead_node_move_or_are_undone(pair: Pair) -> None:
    pair.holding_profile("held")
    pair.make("moved", NOOP.read_text())
    pair.stack.kill_node(2)
    pair.wait_until_dead(2)
    running = [pair.create(f"held{n}", "held") for n in range(2)]  # as many as run at one time
    waiting = [pair.create(f"moved{n}", "moved", start_vm=False) for n in range(3)]
    for task in running:
        pair.wait_for_stage(task, "prepare", "here")
    pair.stack.start_node(2)
    pair.stack.kill_node(1)

    for task in waiting:
        assert pair.wait(task)["status"].endswith("is defined on node hv2")
        assert "moved from hv1 to hv2" in pair.log(task)
    assert [pair.row(task).number for task in sorted(waiting, key=lambda task: pair.row(task).started)] == [
        pair.row(task).number for task in waiting
    ], "in the order of acceptance"

    for n, task in enumerate(running):
        status = pair.wait_status(task, "waiting for node hv1")
        assert f"domain held{n}" in status and f"vm held{n}" in status and "sdb" in status, status
        assert "sda" not in status, "shared storage is cleaned up already"
        assert pair.pool.volume_or_none(f"held{n}_sda") is None
        assert pair.domain_on(1, f"held{n}") == "defined"
        assert (
            pair.request("POST", "/provisioner/create", name=f"held{n}", profile="moved").status_code == 400
        )

    pair.stack.start_node(1)
    for n, task in enumerate(running):
        ended = pair.wait(task, timeout_s=30)
        assert ended["build_state"] == "failed" and "node hv1 was lost" in ended["error"]["why"]
        assert pair.domain_on(1, f"held{n}") == "missing"
    for n in range(3):
        pair.change("DELETE", f"/vm/moved{n}", delete_disks=True)


def test_what_a_build_left_that_was_cancelled_without_its_node_is_removed_by_another(pair: Pair) -> None:
    pair.make("left", script(prepare=HOLDING), DISKS, node_limit="hv1")
    task = pair.create("left1", "left")
    pair.wait_for_stage(task, "prepare", "here")
    for node in (1, 2):
        pair.stack.kill_node(node)
        pair.wait_until_dead(node)
    pair.change("POST", f"/tasks/{task}/cancel")
    assert pair.wait(task)["build_state"] == "cancelled"
    assert pair.pool.volume_or_none("left1_sda") is not None, "nobody is there to remove it"
    pair.stack.start_node(2)
    wait_for(lambda: pair.pool.volume_or_none("left1_sda") is None, "shared storage is cleaned up")
    wait_for(lambda: "removed volume vms/left1_sda" in pair.log(task), "the log tells")
    assert pair.domain_on(1, "left1") == "defined"
    pair.stack.start_node(1)
    wait_for(lambda: pair.domain_on(1, "left1") == "missing", "the node undoes the rest")
    wait_for(lambda: pair.row(task).lease_owner is None, "nobody holds it")


def test_node_that_froze_and_wakes_up_changes_nothing(pair: Pair) -> None:
    pair.make("frozen", script(prepare=HOLDING), {"sda": DISKS["sda"]}, node_limit="hv1")
    task = pair.create("frozen1", "frozen")
    pair.wait_for_stage(task, "prepare", "here")
    build_process = pair.build_pid(task)
    pair.stack.freeze_node(1)
    pair.wait_status(task, "waiting for node hv1")
    objects, before = pair.objects(), pair.events(task)
    assert not any("rbd_data" in name for name in objects), "its volume is gone, although it was open"
    assert build_process in processes()

    pair.stack.thaw_node(1)
    wait_for(lambda: build_process not in processes(), "the build's process ends")
    ended = pair.wait(task, timeout_s=30)  # the node undoes the rest
    assert "node hv1 was lost" in ended["error"]["why"]
    assert pair.objects() == objects, "nothing it had on its way has arrived"
    later = pair.events(task)
    assert later[: len(before)] == before
    assert {stage for stage, _ in later[len(before) :]} <= {"undo"}, "it wrote no line"


def test_guest_that_runs_on_a_lost_node_keeps_its_volumes_until_that_returns(pair: Pair) -> None:
    pair.make("guest", NOOP.read_text(), node_limit="hv1")
    task = pair.create("guest1", "guest")
    wait_for(lambda: pair.row(task).stage == "start", "the build is in its last stage")
    with pair.database.session() as session:
        # The build cannot end while its row is locked.
        session.execute(select(Build).where(Build.id == task).with_for_update())
        wait_for(lambda: pair.domain_on(1, "guest1") == "running", "the guest runs")
        pair.stack.kill_node(1)
    status = pair.wait_status(task, "waiting for node hv1")
    assert "volume vms/guest1_sda is still open" in status
    assert pair.domain_on(1, "guest1") == "running"
    assert pair.pool.volume_or_none("guest1_sda") is not None
    pair.stack.start_node(1)
    assert pair.wait(task, timeout_s=30)["build_state"] == "failed"
    assert pair.domain_on(1, "guest1") == "missing"


def test_neither_redelivery_nor_a_lost_queue_runs_a_build_twice_or_never(pair: Pair) -> None:
    pair.make("slow", script(install="print('here', flush=True); time.sleep(300)"), node_limit="hv1")
    pair.make("quick", NOOP.read_text(), node_limit="hv1")
    running = [pair.create(f"slow{n}", "slow", start_vm=False) for n in range(2)]
    waiting = [pair.create(f"quick{n}", "quick", start_vm=False) for n in range(2)]
    for task in running:
        pair.wait_for_stage(task, "install", "here")
    redis = pair.redis()
    timeout_s = pair.config.queue.visibility_timeout_s
    # A worker that starts puts back what any has taken and not acknowledged in time; then after 100 s again.
    wait_for(
        lambda: redis.zcount("unacked_index", time.time() - timeout_s, "+inf") == 0, "messages are overdue"
    )
    pair.stack.restart(["hv2"])
    wait_for(lambda: redis.llen("node.hv1") >= len(running + waiting), "all messages are delivered again")
    redis.flushall()
    wait_for(lambda: redis.llen("node.hv1") >= 2, "those that wait are sent again")
    for task in running:
        assert pair.row(task).state == "running"
        pair.change("POST", f"/tasks/{task}/cancel")
    ended = [pair.wait(task)["build_state"] for task in (*running, *waiting)]
    assert ended == ["cancelled"] * 2 + ["succeeded"] * 2
    for task in (*running, *waiting):
        assert pair.log(task).count("made volume") == 1
        assert [stage["stage"] for stage in pair.get(f"/tasks/{task}")["stages"]].count("load") == 1
    for vm in ("quick0", "quick1"):
        pair.change("DELETE", f"/vm/{vm}", delete_disks=True)
