"""How each kind of journalled thing is undone on this node. Every undoer is idempotent."""

import time
from collections.abc import Callable, Mapping

from pvccommon.database import Database
from pvccommon.errors import Busy, EnvironmentFault
from pvccommon.models import Vm
from pvccommon.storage.pool import StoragePool
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.journal import Undo

BUSY_FOR_S = 5
VOLUME, DOMAIN, VM = "volume", "domain", "vm"


def _patiently(action: Callable[[], None]) -> None:
    """A killed process holds its devices for some milliseconds more: try for a while."""
    deadline = time.monotonic() + BUSY_FOR_S
    while True:
        try:
            return action()
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def undoers(database: Database, pools: Mapping[str, StoragePool], hypervisor: Hypervisor) -> dict[str, Undo]:
    """Kind -> function taking the resource's name."""

    def undo_volume(name: str) -> None:
        pool, _, volume = name.partition("/")
        if pool not in pools:
            raise EnvironmentFault(f"delete volume {name}", "the pool is no longer configured on this node")
        _patiently(lambda: pools[pool].delete_volume(volume, missing_ok=True))

    def undo_domain(name: str) -> None:
        domain, _, uuid = name.partition("/")
        hypervisor.undefine(domain, uuid=uuid)

    def undo_vm(name: str) -> None:
        vm, _, build = name.partition("/")
        with database.session() as session:
            row = session.get(Vm, vm)
            if row is not None and row.build == build:
                session.delete(row)

    # In this order: a running domain holds its volumes, and the row names the VM until nothing of it is left.
    return {DOMAIN: undo_domain, VOLUME: undo_volume, VM: undo_vm}
