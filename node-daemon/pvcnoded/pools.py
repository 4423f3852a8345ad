"""The pools of this node: those of its configuration, and those made through the API."""

import logging
import os
import threading
import time
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from types import MappingProxyType

from sqlalchemy import select

from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.errors import PvcError
from pvccommon.models import CephPool
from pvccommon.storage import StoragePool, made_pool, pools_from_config

REFRESH_S = 2.0
logger = logging.getLogger("pvc.pools")


class NodePools(Mapping[str, StoragePool]):
    """Looks into the table at most every two seconds; when the database does not answer, nothing changes.

    What is iterated over is what there was at the beginning.
    """

    def __init__(self, config: Config, database: Database, refresh_s: float = REFRESH_S) -> None:
        self._config = config
        self._database = database
        self._refresh_s = refresh_s
        self._configured = pools_from_config(config)
        self._all = self._configured
        self._due = 0.0
        self._looking = threading.Lock()

    def __getitem__(self, name: str) -> StoragePool:
        return self.current()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.current())

    def __len__(self) -> int:
        return len(self.current())

    def items(self) -> ItemsView[str, StoragePool]:
        return self.current().items()

    def values(self) -> ValuesView[StoragePool]:
        return self.current().values()

    def current(self) -> Mapping[str, StoragePool]:
        """All pools of this moment."""
        if time.monotonic() >= self._due and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        return self._all

    def refresh(self) -> None:
        """Look at the next use."""
        self._due = 0.0

    def _look(self) -> None:
        self._due = time.monotonic() + self._refresh_s
        if not self.offers_made:
            return
        try:
            with self._database.session() as session:
                names = set(session.execute(select(CephPool.name)).scalars())
        except PvcError as exc:
            logger.warning("pools made through the API: %s", exc.message)
            return
        new = names - set(self._all)
        made = {name: made_pool(name, self._config) for name in new}
        kept = {name: pool for name, pool in self._all.items() if name in names}
        self._all = MappingProxyType({**kept, **made, **self._configured})

    @property
    def offers_made(self) -> bool:
        """Whether this node has a cluster to reach them in."""
        return os.path.exists(self._config.storage.ceph.ceph_conf)
