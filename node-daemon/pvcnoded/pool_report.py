"""What a node tells of its pools. A pool that is silent (a Ceph cluster) must not silence the node."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from pvccommon.errors import PvcError
from pvccommon.models import Json
from pvccommon.storage.pool import StoragePool

PATIENCE_S = 2.0
THREADS = 32  # made when needed; a silent pool keeps one


class PoolReport:
    """Asks each pool in a thread of its own, and again when it has answered."""

    def __init__(self, pools: Mapping[str, StoragePool], patience_s: float = PATIENCE_S) -> None:
        self._pools = pools
        self._patience_s = patience_s
        self._asked: dict[str, Future[Json]] = {}
        self._identities: dict[str, str | None] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pool report")

    def take(self) -> Json:
        """{pool: {driver, shared, mapping, identity, total_bytes, free_bytes, error?}}, within the patience
        given. `identity`: see `StoragePool.identity`; what it was, while the pool is silent."""
        pools = dict(self._pools.items())  # of one moment: pools come and go
        self._asked = {name: asked for name, asked in self._asked.items() if name in pools}
        for name, pool in pools.items():
            if name not in self._asked:
                self._asked[name] = self._threads.submit(measure, pool)
        wait(self._asked.values(), timeout=self._patience_s)
        return {name: self._answer(name, pool) for name, pool in pools.items()}

    def _answer(self, name: str, pool: StoragePool) -> Json:
        if not self._asked[name].done():
            answer = unusable(pool, f"the pool has not answered for {self._patience_s:g} s")
        else:
            answer = self._asked.pop(name).result()
        self._identities[name] = answer.get("identity") or self._identities.get(name)
        return {**answer, "identity": self._identities[name]}


def measure(pool: StoragePool) -> Json:
    try:
        space, identity = pool.space(), pool.identity()
    except PvcError as exc:
        return unusable(pool, exc.message)
    size = {"total_bytes": space.total_bytes, "free_bytes": space.free_bytes}
    return {**_words(pool), "identity": identity, **size}


def unusable(pool: StoragePool, error: str) -> Json:
    return {**_words(pool), "total_bytes": 0, "free_bytes": 0, "error": error}


def _words(pool: StoragePool) -> Json:
    return {"driver": pool.driver, "shared": pool.shared, "mapping": pool.mapping()}
