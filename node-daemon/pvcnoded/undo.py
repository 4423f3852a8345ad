"""How each kind of journalled thing is undone on this node. Every undoer is idempotent."""

import time
from collections.abc import Callable, Iterable, Mapping

from sqlalchemy.orm import Session

from pvccommon.database import Database
from pvccommon.errors import Busy, EnvironmentFault, LeaseLost, PvcError
from pvccommon.kept_volumes import VOLUME
from pvccommon.models import Vm
from pvccommon.storage.pool import StoragePool
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.journal import Journal, Undo

BUSY_FOR_S = 5
DOMAIN, VM = "domain", "vm"


def guard_pools(
    journal: Journal, pools: Mapping[str, StoragePool], names: Iterable[str]
) -> dict[str, PvcError]:
    """Keep from the pools named whoever worked on the build before, and note that this process does now.

    Returns why that could not be done, for pools where it could not: nothing may be deleted there.
    """
    unguarded: dict[str, PvcError] = {}
    for name in names:
        try:
            if name in pools and (mine := pools[name].client()):
                for client in journal.clients(name):
                    if client != mine:
                        pools[name].fence(client)
                journal.note_client(name, mine)
        except LeaseLost:
            raise
        except PvcError as exc:
            unguarded[name] = exc
    return unguarded


def pools_of(journal: Journal) -> list[str]:
    """The pools that have volumes which are to be undone."""
    return sorted({name.partition("/")[0] for kind, name in journal.pending() if kind == VOLUME})


def patiently(action: Callable[[], None]) -> None:
    """A process that ends holds its devices for some milliseconds more: try for a while."""
    deadline = time.monotonic() + BUSY_FOR_S
    while True:
        try:
            return action()
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def undoers(
    database: Database,
    pools: Mapping[str, StoragePool],
    hypervisor: Hypervisor,
    unguarded: Mapping[str, PvcError],
) -> dict[str, Undo]:
    """Kind -> function taking the resource's name. `unguarded`: see `guard_pools`."""

    def undo_volume(name: str) -> None:
        pool, _, volume = name.partition("/")
        if pool in unguarded:
            raise unguarded[pool]
        if pool not in pools:
            raise EnvironmentFault(f"delete volume {name}", "the pool is no longer configured on this node")
        patiently(lambda: pools[pool].delete_volume(volume, missing_ok=True))

    def undo_domain(name: str) -> None:
        domain, _, uuid = name.partition("/")
        hypervisor.undefine(domain, uuid=uuid)

    def undo_vm(name: str) -> None:
        vm, _, build = name.partition("/")

        def delete(session: Session) -> None:
            row = session.get(Vm, vm)
            if row is not None and row.build == build:
                session.delete(row)

        database.patiently(delete)

    # In this order: a running domain holds its volumes, and the row names the VM until nothing of it is left.
    return {DOMAIN: undo_domain, VOLUME: undo_volume, VM: undo_vm}
