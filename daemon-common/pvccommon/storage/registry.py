"""The pools of this node, from its configuration."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from pvccommon.config import Config, Pool
from pvccommon.errors import NotFound
from pvccommon.storage.ceph import CephAccount
from pvccommon.storage.directory import DirectoryPool
from pvccommon.storage.directory_layout import GIB
from pvccommon.storage.pool import StoragePool
from pvccommon.storage.rbd import RbdPool


def _directory_pool(name: str, settings: Pool, config: Config) -> StoragePool:
    return DirectoryPool(
        name,
        settings.path or os.path.join(config.state_directory, "pools", name),
        volume_format=settings.format,
        max_volume_bytes=config.storage.max_volume_gib * GIB,
        mapping=config.storage.mapping,
    )


def _rbd_pool(name: str, settings: Pool, config: Config) -> StoragePool:
    return RbdPool(
        name,
        CephAccount(settings.ceph_user, settings.ceph_conf, settings.ceph_keyring),
        ceph_pool=settings.ceph_pool,
        max_volume_bytes=config.storage.max_volume_gib * GIB,
        mapping=config.storage.mapping,
    )


# A new driver adds its line here and its keys to `pvccommon.config.Pool`.
DRIVERS: Mapping[str, Callable[[str, Pool, Config], StoragePool]] = {
    "directory": _directory_pool,
    "rbd": _rbd_pool,
}


def pools_from_config(config: Config) -> Mapping[str, StoragePool]:
    """The pools by name. Nothing is opened or made before a pool is used."""
    pools = {
        name: DRIVERS[settings.driver](name, settings, config)
        for name, settings in config.storage.pools.items()
    }
    return MappingProxyType(pools)


def made_pool(name: str, config: Config) -> StoragePool:
    """A pool made through the API."""
    ceph = config.storage.ceph
    settings = Pool("rbd", ceph_user=ceph.ceph_user, ceph_conf=ceph.ceph_conf, ceph_keyring=ceph.ceph_keyring)
    return _rbd_pool(name, settings, config)


def get_pool(pools: Mapping[str, StoragePool], name: str) -> StoragePool:
    """One pool; raises NotFound naming those there are."""
    try:
        return pools[name]
    except KeyError:
        there = ", ".join(sorted(pools)) or "none"
        raise NotFound(f"find pool {name}", "this node has no such pool", f"its pools: {there}") from None
