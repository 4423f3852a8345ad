"""Making, resizing and removing pools of a Ceph cluster, by an account that may do that.

The account of the nodes need not be told of a new pool: its capabilities name a mark (docs/storage.md), which
every pool made here carries.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pvccommon.errors import EnvironmentFault, Exists, NotFound, PvcError, WrongState
from pvccommon.storage.ceph import CephAccount, CephCluster, connect

APPLICATION = "rbd"
MARK = ("pvc", "volumes")  # key and value, in the metadata of the application
TIERS = ("default", "hdd", "ssd", "nvme")
FAILURE_DOMAIN = "host"
DELETE_HINT = "ceph config set mon mon_allow_pool_delete true; and see docs/storage.md for the capabilities"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolLayout:
    """`copies` of everything, `mincopies` must be there for writing; `tier`: the class of the disks."""

    pgs: int
    copies: int
    mincopies: int
    tier: str


class CephPools:
    """The pools of one cluster."""

    def __init__(self, account: CephAccount) -> None:
        self._account = account

    def exists(self, name: str) -> bool:
        return self._find(name, f"find Ceph pool {name}") is not None

    def create(self, name: str, layout: PoolLayout) -> None:
        """Make a pool for RBD, with our mark. Safe to repeat; what fails on the way is removed.

        Raises Exists for a pool that does not have the mark, WrongInput for what the cluster refuses.
        """
        what = f"create Ceph pool {name}"
        found = self._find(name, what)
        if found is not None and not has_mark(found):
            why = "the cluster has one of this name, which was not made here"
            raise Exists(what, why, "choose another name, or add it to the configuration of the nodes")
        with ExitStack() as undo:
            if found is None:
                self._order(what, "osd pool create", pool=name, pool_type="replicated", **_placement(layout))
                undo.callback(self._try_to_delete, name)
            self._order(what, "osd pool application enable", pool=name, app=APPLICATION)
            mark = dict(zip(("key", "value"), MARK, strict=True))
            self._order(what, "osd pool application set", pool=name, app=APPLICATION, **mark)
            self._lay_out(name, layout, what)
            undo.pop_all()

    def resize(self, name: str, pgs: int) -> None:
        """Another number of placement groups; the data moves by and by. Raises NotFound, WrongInput."""
        what = f"resize Ceph pool {name}"
        if self._find(name, what) is None:
            raise NotFound(what, "the cluster has no such pool")
        for variable in ("pg_num", "pgp_num"):
            self._order(what, "osd pool set", pool=name, var=variable, val=str(pgs))

    def delete(self, name: str) -> None:
        """Remove a pool with everything in it. Safe to repeat. Raises WrongState for one without the mark."""
        what = f"remove Ceph pool {name}"
        found = self._find(name, what)
        if found is None:
            return
        if not has_mark(found):
            raise WrongState(what, "it was not made here", f"ceph osd pool delete {name} …")
        try:
            self._order(what, "osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True)
        except EnvironmentFault as exc:
            raise EnvironmentFault(what, exc.why, DELETE_HINT) from exc

    def _lay_out(self, name: str, layout: PoolLayout, what: str) -> None:
        if layout.tier != "default":
            rule = f"pvc_{layout.tier}"
            where = {"root": "default", "type": FAILURE_DOMAIN, "class": layout.tier}
            self._order(what, "osd crush rule create-replicated", name=rule, **where)
            self._set(name, what, "crush_rule", rule)
        # The number of placement groups is the operator's.
        self._set(name, what, "pg_autoscale_mode", "off")
        sure = {"yes_i_really_mean_it": True} if layout.copies == 1 else {}
        self._set(name, what, "size", str(layout.copies), **sure)
        self._set(name, what, "min_size", str(layout.mincopies))

    def _set(self, name: str, what: str, variable: str, value: str, **more: Any) -> None:
        self._order(what, "osd pool set", pool=name, var=variable, val=value, **more)

    def _find(self, name: str, what: str) -> dict[str, Any] | None:
        pools = self._cluster.ask(what, {"prefix": "osd pool ls", "detail": "detail"})
        return next((pool for pool in pools if pool["pool_name"] == name), None)

    def _try_to_delete(self, name: str) -> None:
        try:
            self.delete(name)
        except PvcError as exc:
            log.warning("a half made pool stays: %s", exc.message)

    def _order(self, what: str, prefix: str, **arguments: Any) -> None:
        self._cluster.order(what, {"prefix": prefix, **arguments})

    @property
    def _cluster(self) -> CephCluster:
        return connect(self._account)


def has_mark(pool: dict[str, Any]) -> bool:
    """Whether an element of `osd pool ls detail` was made here."""
    return bool(pool.get("application_metadata", {}).get(APPLICATION, {}).get(MARK[0]) == MARK[1])


def _placement(layout: PoolLayout) -> dict[str, int]:
    return {"pg_num": layout.pgs, "pgp_num": layout.pgs}
