"""Storage pools: volumes, snapshots and clones, and volumes as block devices.

`StoragePool` (pool.py) is the interface; `pools_from_config` (registry.py) gives the pools of this node.
"""

from pvccommon.storage.partition import Partition, PartitionDevice, add_partition, delete_partition
from pvccommon.storage.pool import (
    BackingFile,
    BlockDevice,
    DiskSource,
    PoolSpace,
    Snapshot,
    StoragePool,
    Volume,
)
from pvccommon.storage.registry import get_pool, made_pool, pools_from_config

__all__ = [
    "BackingFile",
    "BlockDevice",
    "DiskSource",
    "Partition",
    "PartitionDevice",
    "PoolSpace",
    "Snapshot",
    "StoragePool",
    "Volume",
    "add_partition",
    "delete_partition",
    "get_pool",
    "made_pool",
    "pools_from_config",
]
