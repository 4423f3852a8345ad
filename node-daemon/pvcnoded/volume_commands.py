"""What the API may ask about the volumes of a node's pools. Sizes are bytes."""

from collections.abc import Mapping

from pvccommon.errors import NoSpace
from pvccommon.models import Json
from pvccommon.storage import get_pool
from pvccommon.storage.faults import FREE_SPACE
from pvccommon.storage.pool import StoragePool, Volume
from pvcnoded.command import Verbs

FILL = 0.8  # a pool is filled further only when that is forced


class VolumeCommands:
    """Looks into, and changes of, the volumes this node reaches."""

    def __init__(self, pools: Mapping[str, StoragePool]) -> None:
        self._pools = pools

    def verbs(self) -> Verbs:
        return {
            "volume.find": self.find_volume,
            "volume.get": self.get_volume,
            "volume.list": self.list_volumes,
            "volume.create": self.create_volume,
            "volume.resize": self.resize_volume,
            "volume.rename": self.rename_volume,
            "volume.clone": self.clone_volume,
        }

    def slow_verbs(self) -> Verbs:
        """What may copy, or remove, a whole volume."""
        return {"volume.delete": self.delete_volume, "volume.flatten": self.flatten_volume}

    def find_volume(self, arguments: Json) -> Json:
        """{pool, volume} -> {found: null or {size_bytes}}."""
        volume = self._pool(arguments).volume_or_none(arguments["volume"])
        return {"found": None if volume is None else {"size_bytes": volume.size_bytes}}

    def get_volume(self, arguments: Json) -> Json:
        """{pool, volume} -> {volume: see `describe_volume`, with snapshot_count}."""
        pool = self._pool(arguments)
        volume = pool.stat_volume(arguments["volume"])
        count = len(pool.list_snapshots(volume.name))
        return {"volume": {**describe_volume(pool, volume), "snapshot_count": count}}

    def list_volumes(self, arguments: Json) -> Json:
        """{pools: [name]} -> {volumes: [see `describe_volume`]}."""
        pools = [get_pool(self._pools, name) for name in arguments["pools"]]
        return {
            "volumes": [describe_volume(pool, volume) for pool in pools for volume in pool.list_volumes()]
        }

    def create_volume(self, arguments: Json) -> Json:
        """{pool, volume, size_bytes, force} -> {volume}."""
        pool, name, size_bytes = self._pool(arguments), arguments["volume"], int(arguments["size_bytes"])
        what = f"create volume {pool.describe(name)}"
        require_space(pool, what, size_bytes, force=bool(arguments.get("force")))
        return {"volume": describe_volume(pool, pool.create_volume(name, size_bytes))}

    def resize_volume(self, arguments: Json) -> Json:
        """{pool, volume, size_bytes, force} -> {volume}."""
        pool, name, size_bytes = self._pool(arguments), arguments["volume"], int(arguments["size_bytes"])
        more_bytes = size_bytes - pool.stat_volume(name).size_bytes
        if more_bytes > 0:
            what = f"resize volume {pool.describe(name)}"
            require_space(pool, what, more_bytes, force=bool(arguments.get("force")))
        return {"volume": describe_volume(pool, pool.resize_volume(name, size_bytes))}

    def rename_volume(self, arguments: Json) -> Json:
        """{pool, volume, new_name} -> {volume}."""
        pool = self._pool(arguments)
        volume = pool.rename_volume(arguments["volume"], arguments["new_name"])
        return {"volume": describe_volume(pool, volume)}

    def clone_volume(self, arguments: Json) -> Json:
        """{pool, volume, new_volume, snapshot: null or name, force} -> {volume}.

        A clone takes no space of its own at first, so only how full the pool is counts.
        """
        pool, name, new = self._pool(arguments), arguments["volume"], arguments["new_volume"]
        what = f"clone volume {pool.describe(name)} as {pool.describe(new)}"
        require_space(pool, what, 0, force=bool(arguments.get("force")))
        if arguments.get("snapshot"):
            return {"volume": describe_volume(pool, pool.clone_snapshot(name, arguments["snapshot"], new))}
        return {"volume": describe_volume(pool, pool.clone_volume(name, new))}

    def delete_volume(self, arguments: Json) -> Json:
        """{pool, volume} -> {}: with its snapshots."""
        self._pool(arguments).delete_volume(arguments["volume"])
        return {}

    def flatten_volume(self, arguments: Json) -> Json:
        """{pool, volume} -> {volume}."""
        pool = self._pool(arguments)
        return {"volume": describe_volume(pool, pool.flatten_volume(arguments["volume"]))}

    def _pool(self, arguments: Json) -> StoragePool:
        return get_pool(self._pools, arguments["pool"])


def describe_volume(pool: StoragePool, volume: Volume) -> Json:
    """{pool, name, size_bytes, used_bytes, parent, format, objects, order, features}."""
    return {
        "pool": pool.name,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "used_bytes": volume.used_bytes,
        "parent": volume.parent,
        "format": volume.format,
        "objects": -(-volume.size_bytes >> pool.object_order) if pool.object_order else 0,
        "order": pool.object_order,
        "features": list(pool.features),
    }


def require_space(pool: StoragePool, what: str, need_bytes: int, *, force: bool) -> None:
    """Raises NoSpace when a pool has not so much free, or would be too full and that is not forced."""
    space = pool.space()
    if need_bytes > space.free_bytes:
        why = f"it needs {need_bytes} bytes, and pool {pool.name} has {space.free_bytes} bytes free"
        raise NoSpace(what, why, FREE_SPACE)
    usable_bytes = space.used_bytes + space.free_bytes
    if not force and space.used_bytes + need_bytes > FILL * usable_bytes:
        why = f"pool {pool.name} would be more than {FILL:.0%} full"
        raise NoSpace(what, why, f"{FREE_SPACE}; or force it")
