"""Many builds at once: none lost, none twice, in order, and nothing accumulates in the daemons."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cluster import NOOP, Cluster, processes
from redis import Redis
from sqlalchemy import select, text

from pvccommon.config import read_secret
from pvccommon.models import Build, Resource

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

COUNT = 20
WARM_UP = 32  # the threads of the API: each makes connections of its own, and keeps them
QUIET_ROUNDS = 3  # so many rounds of requests that add nothing have used every thread
MOST_ROUNDS = 20
DAEMONS = ("pvcnoded.main", "pvcnoded.worker", "gunicorn", "pvcapid")
SETTLE_S = 20


@pytest.fixture
def cluster(ceph_cluster: Cluster) -> Cluster:
    return ceph_cluster


def test_twenty_builds_at_once_over_ceph(cluster: Cluster) -> None:
    cluster.make_profile("many", NOOP.read_text(), memory_mib=64)
    names = [f"many{number}" for number in range(COUNT)]
    before = warm_up(cluster)
    tasks = run_all(cluster, names)
    rows = rows_of(cluster, tasks)
    assert [row.state for row in rows] == ["succeeded"] * COUNT
    assert sorted(row.started for row in rows) == [row.started for row in rows], "not in order of acceptance"
    assert [runs(cluster, task) for task in tasks] == [1] * COUNT
    deadline = time.monotonic() + SETTLE_S
    while (grown := growth(before, held(cluster))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert grown == {}


def run_all(cluster: Cluster, names: list[str]) -> list[str]:
    """Build all of them at one time and remove the VMs; returns the tasks."""
    with ThreadPoolExecutor(len(names)) as threads:
        tasks = list(threads.map(lambda name: cluster.create(name, "many"), names))
    for task in tasks:
        cluster.wait(task, timeout_s=240)
    for name in names:
        cluster.change("DELETE", f"/vm/{name}", delete_disks=True)
    return tasks


def warm_up(cluster: Cluster) -> dict[str, int]:
    """Have every thread of the API ask the node something, and the node run builds; what is held then."""

    def plan(number: int) -> None:
        assert cluster.change("POST", "/provisioner/plan", name=f"warm{number}", profile="many")["ok"]

    run_all(cluster, ["warm1", "warm2"])
    before, quiet = held(cluster), 0
    for _ in range(MOST_ROUNDS):
        with ThreadPoolExecutor(WARM_UP) as threads:
            list(threads.map(plan, range(WARM_UP)))
        now = held(cluster)
        quiet = 0 if growth(before, now) else quiet + 1
        if quiet == QUIET_ROUNDS:
            break
        before = {what: max(count, before.get(what, 0)) for what, count in now.items()}
    cluster.hang_up()
    return before


def rows_of(cluster: Cluster, tasks: list[str]) -> list[Build]:
    """The builds in the order in which they were accepted."""
    with cluster.database.session() as session:
        query = select(Build).where(Build.id.in_(tasks)).order_by(Build.number)
        return list(session.execute(query).scalars())


def runs(cluster: Cluster, task: str) -> int:
    """How many processes have worked on a build: each would write the domain to the journal."""
    with cluster.database.session() as session:
        kinds = session.execute(select(Resource.kind).where(Resource.build == task)).scalars().all()
    return kinds.count("domain")


def held(cluster: Cluster) -> dict[str, int]:
    """What the stack's long-lived daemons hold: descriptors of each, connections to services."""
    found = {}
    for pid, line in processes().items():
        if any(word in line for word in DAEMONS) and cluster.is_ours(pid):
            found[f"descriptors of {pid}"] = len(os.listdir(f"/proc/{pid}/fd"))
    with cluster.database.session() as session:
        found["database connections"] = session.execute(
            text("SELECT count(*) FROM pg_stat_activity")
        ).scalar()
    found["queue connections"] = len(redis_clients(cluster))
    return found


def redis_clients(cluster: Cluster) -> list[Any]:
    queue = cluster.config.queue
    with Redis(host=queue.host, port=queue.port, password=read_secret(queue.password_file)) as client:
        return list(client.client_list())


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What has become more; a daemon that is new, because the old one has ended, counts, too."""
    counts = {what: (before.get(what, 0), count) for what, count in after.items()}
    return {what: (earlier, now) for what, (earlier, now) in counts.items() if now > earlier}
