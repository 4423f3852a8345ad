"""A node reports in time, whatever its pools do."""

import threading
import time

from pvccommon.errors import EnvironmentFault
from pvccommon.storage import PoolSpace
from pvcnoded.pool_report import PoolReport


class FakePool:
    """A pool that answers when it is told to."""

    driver = "rbd"
    shared = True

    def __init__(self, *, silent: bool = False, broken: bool = False) -> None:
        self.answers = threading.Event()
        self.broken = broken
        self.asked = 0
        if not silent:
            self.answers.set()

    def mapping(self) -> str:
        return "export"

    def identity(self) -> str:
        return "cluster/vms"

    def space(self) -> PoolSpace:
        self.asked += 1
        self.answers.wait(10)
        if self.broken:
            raise EnvironmentFault("measure pool", "the cluster is gone")
        return PoolSpace(10, 4, 6)


def test_a_silent_pool_delays_nothing_and_comes_back() -> None:
    silent, good = FakePool(silent=True), FakePool()
    report = PoolReport({"slow": silent, "vms": good}, patience_s=0.1)  # type: ignore[dict-item]
    for _ in range(2):
        started = time.monotonic()
        found = report.take()
        assert time.monotonic() - started < 1
        assert "has not answered" in found["slow"]["error"]
        told = {"driver": "rbd", "shared": True, "mapping": "export", "identity": "cluster/vms"}
        assert found["vms"] == {**told, "total_bytes": 10, "free_bytes": 6}
    assert silent.asked == 1, "it is not asked again while it has not answered"
    silent.answers.set()
    deadline = time.monotonic() + 10
    while "error" in report.take()["slow"]:
        assert time.monotonic() < deadline


def test_a_pool_that_falls_silent_keeps_its_identity() -> None:
    pool = FakePool()
    report = PoolReport({"vms": pool}, patience_s=0.1)  # type: ignore[dict-item]
    assert report.take()["vms"]["identity"] == "cluster/vms"
    pool.answers.clear()
    found = report.take()["vms"]
    pool.answers.set()
    assert (found["identity"], "error" in found) == ("cluster/vms", True)


def test_a_broken_pool_is_reported_with_its_reason() -> None:
    report = PoolReport({"vms": FakePool(broken=True)})  # type: ignore[dict-item]
    assert "the cluster is gone" in report.take()["vms"]["error"]
