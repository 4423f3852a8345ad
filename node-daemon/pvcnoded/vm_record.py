"""The row of a VM that a build makes."""

from collections.abc import Iterable

from sqlalchemy.orm import Session

from pvccommon.database import Database
from pvccommon.errors import Exists
from pvccommon.models import Json, Vm

COPIED_FROM_SYSTEM = (
    "node_limit",
    "node_selector",
    "node_autostart",
    "migration_method",
    "migration_max_downtime",
)


def write_vm(database: Database, build_id: str, plan: Json, xml: str) -> None:
    """Insert the row in state `provision`, in which nobody touches the VM. Raises Exists. Safe to repeat."""
    name = plan["vm"]["name"]

    def write(session: Session) -> None:
        found = session.get(Vm, name)
        if found is not None and found.build == build_id:
            return
        if found is not None:
            raise Exists(f"create VM {name}", "a VM of this name exists", f"pvc vm remove {name}")
        session.add(
            Vm(
                name=name,
                uuid=plan["vm"]["uuid"],
                node=plan["node"],
                state="provision",
                profile=plan["profile"],
                description=f"made from profile {plan['profile']}",
                memory_mib=plan["domain"]["memory_mib"],
                vcpus=plan["domain"]["vcpus"],
                xml=xml,
                userdata=plan["userdata"],
                volumes=[_attached(volume) for volume in plan["volumes"]],
                build=build_id,
                **{column: plan["system"][column] for column in COPIED_FROM_SYSTEM},
            )
        )

    database.patiently(write)


def media_of(cdroms: Iterable[Json], *, started: bool) -> list[Json]:
    """CD-ROMs of a plan, as the row has them until they are taken away (see `media`)."""
    return [{**_attached(cdrom), "temporary": cdrom["temporary"], "started": started} for cdrom in cdroms]


def _attached(volume: Json) -> Json:
    return {key: volume[key] for key in ("pool", "volume", "disk_id")}


def update_vm(database: Database, name: str, **columns: object) -> None:
    """Change columns of a VM's row; a VM that is gone stays gone."""

    def update(session: Session) -> None:
        row = session.get(Vm, name)
        for column, value in columns.items() if row is not None else ():
            setattr(row, column, value)

    database.patiently(update)
