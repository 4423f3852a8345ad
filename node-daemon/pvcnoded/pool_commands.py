"""What the API may ask about pools as a whole."""

from collections.abc import Mapping
from dataclasses import asdict

from pvccommon.config import Ceph
from pvccommon.errors import WrongState
from pvccommon.models import Json
from pvccommon.storage import get_pool
from pvccommon.storage.ceph import CephAccount
from pvccommon.storage.ceph_pools import CephPools, PoolLayout
from pvccommon.storage.pool import StoragePool
from pvcnoded.command import Verbs

SHOWN = 5  # volumes that are named


class PoolCommands:
    """Looks at the pools of this node, and changes of those in Ceph, for which it needs a manager account."""

    def __init__(self, pools: Mapping[str, StoragePool], settings: Ceph) -> None:
        self._pools = pools
        self._settings = settings

    def verbs(self) -> Verbs:
        return {"pool.get": self.get_pool}

    def slow_verbs(self) -> Verbs:
        """Several questions to the monitors each."""
        return {
            "pool.create": self.create_pool,
            "pool.resize": self.resize_pool,
            "pool.delete": self.delete_pool,
        }

    def get_pool(self, arguments: Json) -> Json:
        """{pool} -> {pool: {driver, volume_count, tier, pgs, stats}}."""
        pool = get_pool(self._pools, arguments["pool"])
        numbers = asdict(pool.statistics())
        words = {key: numbers.pop(key) for key in ("tier", "pgs")}
        count = pool.count_volumes()
        return {"pool": {"driver": pool.driver, "volume_count": count, **words, "stats": numbers}}

    def create_pool(self, arguments: Json) -> Json:
        """{pool, pgs, copies, mincopies, tier} -> {}. Safe to repeat."""
        layout = PoolLayout(**{key: arguments[key] for key in ("pgs", "copies", "mincopies", "tier")})
        self._manager(f"create pool {arguments['pool']}").create(arguments["pool"], layout)
        return {}

    def resize_pool(self, arguments: Json) -> Json:
        """{pool, pgs} -> {}."""
        self._manager(f"resize pool {arguments['pool']}").resize(arguments["pool"], arguments["pgs"])
        return {}

    def delete_pool(self, arguments: Json) -> Json:
        """{pool} -> {}: only one without volumes. Safe to repeat."""
        name = arguments["pool"]
        what = f"remove pool {name}"
        manager = self._manager(what)
        if manager.exists(name):
            refuse_volumes(get_pool(self._pools, name), what)
        manager.delete(name)
        return {}

    def _manager(self, what: str) -> CephPools:
        settings = self._settings
        if settings.manager_user is None:
            why = "this node has no account that may change pools of Ceph"
            raise WrongState(what, why, "set storage.ceph.manager_user there (docs/storage.md)")
        return CephPools(CephAccount(settings.manager_user, settings.ceph_conf, settings.manager_keyring))


def refuse_volumes(pool: StoragePool, what: str) -> None:
    """Raises WrongState naming some of a pool's volumes."""
    names = [volume.name for volume in pool.list_volumes()]
    if names:
        listed = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
        raise WrongState(what, f"it has {len(names)} volumes: {listed}", "remove or move them first")
