"""What the API may ask about the snapshots of volumes."""

from collections.abc import Mapping

from pvccommon.models import Json
from pvccommon.storage import get_pool
from pvccommon.storage.pool import Snapshot, StoragePool
from pvcnoded.command import Verbs


class SnapshotCommands:
    """Looks at, and changes of, snapshots in the pools this node reaches."""

    def __init__(self, pools: Mapping[str, StoragePool]) -> None:
        self._pools = pools

    def verbs(self) -> Verbs:
        return {
            "snapshot.list": self.list_snapshots,
            "snapshot.create": self.create_snapshot,
            "snapshot.rename": self.rename_snapshot,
            "snapshot.protect": self.protect_snapshot,
            "snapshot.unprotect": self.unprotect_snapshot,
        }

    def slow_verbs(self) -> Verbs:
        """What may copy, or remove, a whole volume's content."""
        return {"snapshot.delete": self.delete_snapshot, "snapshot.rollback": self.rollback_snapshot}

    def list_snapshots(self, arguments: Json) -> Json:
        """{pools: [name], volume: null or name} -> {snapshots: [see `describe_snapshot`]}."""
        found = []
        for name in arguments["pools"]:
            pool = get_pool(self._pools, name)
            for volume in self._volumes(pool, arguments.get("volume")):
                found += [describe_snapshot(snapshot) for snapshot in pool.list_snapshots(volume)]
        return {"snapshots": found}

    def create_snapshot(self, arguments: Json) -> Json:
        """{pool, volume, snapshot} -> {snapshot}."""
        pool = self._pool(arguments)
        return {
            "snapshot": describe_snapshot(pool.create_snapshot(arguments["volume"], arguments["snapshot"]))
        }

    def rename_snapshot(self, arguments: Json) -> Json:
        """{pool, volume, snapshot, new_name} -> {snapshot}."""
        renamed = self._pool(arguments).rename_snapshot(
            arguments["volume"], arguments["snapshot"], arguments["new_name"]
        )
        return {"snapshot": describe_snapshot(renamed)}

    def protect_snapshot(self, arguments: Json) -> Json:
        """{pool, volume, snapshot} -> {}. Safe to repeat."""
        self._pool(arguments).protect_snapshot(arguments["volume"], arguments["snapshot"])
        return {}

    def unprotect_snapshot(self, arguments: Json) -> Json:
        """{pool, volume, snapshot} -> {}. Safe to repeat."""
        self._pool(arguments).unprotect_snapshot(arguments["volume"], arguments["snapshot"])
        return {}

    def delete_snapshot(self, arguments: Json) -> Json:
        """{pool, volume, snapshot} -> {}."""
        self._pool(arguments).delete_snapshot(arguments["volume"], arguments["snapshot"])
        return {}

    def rollback_snapshot(self, arguments: Json) -> Json:
        """{pool, volume, snapshot} -> {}: what was written since is lost."""
        self._pool(arguments).rollback_snapshot(arguments["volume"], arguments["snapshot"])
        return {}

    def _pool(self, arguments: Json) -> StoragePool:
        return get_pool(self._pools, arguments["pool"])

    def _volumes(self, pool: StoragePool, wanted: str | None) -> list[str]:
        """The volumes to look at; one that is named need not be there."""
        if wanted is None:
            return [volume.name for volume in pool.list_volumes()]
        return [wanted] if pool.volume_or_none(wanted) else []


def describe_snapshot(snapshot: Snapshot) -> Json:
    """{pool, volume, snapshot, size, used, protected, children, created}; sizes are bytes."""
    return {
        "pool": snapshot.pool,
        "volume": snapshot.volume,
        "snapshot": snapshot.name,
        "size": snapshot.size_bytes,
        "used": snapshot.used_bytes,
        "protected": snapshot.protected,
        "children": list(snapshot.children),
        "created": snapshot.created,
    }
