"""Who needs a volume, or will make one of its name: VMs, images, builds, and what builds have left."""

from sqlalchemy import cast, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pvcapid.services import reading
from pvcapid.storage_nodes import Place
from pvccommon.errors import WrongState
from pvccommon.kept_volumes import discard_command, find_left_volume
from pvccommon.models import ACTIVE_STATES, Build, Image, ImageVolume, ResourceState, Vm, one_of


def require_unused(place: Place, volume: str, what: str) -> None:
    """Raises WrongState naming the VM, image or build whose disk the volume is, and what to do."""
    with reading() as session:
        _refuse_vm(session, place, volume, what)
        _refuse_image(session, place, volume, what)
        _refuse_build(session, place, volume, what, ("volume", "source_volume"))
        _refuse_left(session, place, volume, what)


def require_no_image(place: Place, volume: str, what: str) -> None:
    """Raises WrongState when the volume is an image's: what clones start from stays as it is."""
    with reading() as session:
        _refuse_image(session, place, volume, what)


def require_free_name(place: Place, volume: str, what: str) -> None:
    """Raises WrongState when a build will make, or remove, a volume of this name."""
    with reading() as session:
        _refuse_vm(session, place, volume, what)
        _refuse_image(session, place, volume, what)
        _refuse_build(session, place, volume, what, ("volume",))
        _refuse_left(session, place, volume, what)


def _refuse_vm(session: Session, place: Place, volume: str, what: str) -> None:
    disk = [{"pool": place.pool, "volume": volume}]
    held = (cast(Vm.volumes, JSONB).contains(disk), cast(Vm.media, JSONB).contains(disk))
    query = select(Vm.name).where(or_(*held))
    if not place.shared:
        query = query.where(Vm.node == place.node)
    vm = session.execute(query.order_by(Vm.name).limit(1)).scalar()
    if vm:
        hint = f"pvc vm undefine {vm} keeps its volumes; pvc vm remove {vm} deletes them, too"
        raise WrongState(what, f"it is a disk of VM {vm}", hint)


def _refuse_image(session: Session, place: Place, volume: str, what: str) -> None:
    query = (
        select(Image.name)
        .join(ImageVolume)
        .where(ImageVolume.pool == place.pool, ImageVolume.volume == volume)
    )
    if not place.shared:
        query = query.where(Image.node == place.node)
    image = session.execute(query.limit(1)).scalar()
    if image:
        raise WrongState(what, f"it is part of image {image}", "remove the image instead")


def _refuse_build(session: Session, place: Place, volume: str, what: str, keys: tuple[str, ...]) -> None:
    planned = [cast(Build.plan[part], JSONB) for part in ("volumes", "cdroms")]
    query = select(Build.id, Build.vm).where(
        one_of(Build.state, ACTIVE_STATES),
        or_(*(part.contains([{"pool": place.pool, key: volume}]) for part in planned for key in keys)),
    )
    if not place.shared:
        query = query.where(Build.node == place.node)
    found = session.execute(query.order_by(Build.number).limit(1)).first()
    if found:
        hint = f"wait for its end, or: pvc cluster task cancel {found.id}"
        raise WrongState(what, f"build {found.id} needs it for VM {found.vm}", hint)


def _refuse_left(session: Session, place: Place, volume: str, what: str) -> None:
    left = find_left_volume(session, f"{place.pool}/{volume}", place.shown_node)
    if left is None:
        return
    if left.state == ResourceState.HELD:
        raise WrongState(what, f"it is kept of build {left.build}, which failed", discard_command(left.build))
    why = f"build {left.build} has left it, and node {left.node} is still to remove it"
    raise WrongState(what, why, "try again when it has gone")
