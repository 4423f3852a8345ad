"""Volumes that builds which ended badly have left: kept for inspection, discarded, or still to be removed."""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon.errors import WrongState
from pvccommon.models import FINAL_STATES, PENDING, Build, Resource, ResourceState, one_of

VOLUME = "volume"  # the kind of their lines in the journal


def discard_command(build_id: str) -> str:
    return f"pvc cluster task discard {build_id}"


def kept_volumes(session: Session, build_ids: Collection[str]) -> dict[str, list[str]]:
    """The volumes ("pool/volume") kept for inspection, by build; builds without any are not in it."""
    if not build_ids:
        return {}
    query = (
        select(Resource)
        .where(one_of(Resource.build, build_ids), Resource.state == ResourceState.HELD.value)
        .order_by(Resource.build, Resource.seq)
    )
    found: dict[str, list[str]] = {}
    for row in session.execute(query).scalars():
        found.setdefault(row.build, []).append(row.name)
    return found


def find_left_volume(session: Session, name: str, node: str | None) -> Resource | None:
    """A volume ("pool/volume") some build has left, on one node, or on any if every node sees the same."""
    query = select(Resource).where(
        Resource.kind == VOLUME,
        Resource.name == name,
        one_of(Resource.state, (*PENDING, ResourceState.HELD)),
    )
    if node is not None:
        query = query.where(Resource.node == node)
    left: Resource | None = session.execute(query.order_by(Resource.state == "held").limit(1)).scalar()
    return left


def discard_volumes(session: Session, build: Build) -> list[Resource]:
    """Mark the kept volumes of a build as to be removed; returns all that wait for their node to do so.

    Safe to repeat until they are gone. Raises WrongState when the build has not ended, or nothing is kept.
    """
    what = f"discard the volumes of task {build.id}"
    if build.state not in FINAL_STATES:
        raise WrongState(what, f"it has not ended: {build.state}", f"pvc cluster task cancel {build.id}")
    rows = _left_of(session, build.id)
    if not rows:
        raise WrongState(what, "no volumes are kept of it", "see: pvc cluster task")
    for row in rows:
        if row.state == ResourceState.HELD:
            row.state = ResourceState.MADE.value
    return rows


def hold_volumes(session: Session, build_id: str) -> None:
    """Keep for inspection the volumes that a build which ends now has made whole, on whatever node."""
    made = select(Resource).where(
        Resource.build == build_id, Resource.kind == VOLUME, Resource.state == ResourceState.MADE.value
    )
    for row in session.execute(made).scalars():
        row.state = ResourceState.HELD.value


def require_nothing_kept(session: Session, build_id: str, what: str) -> None:
    """Raises WrongState when volumes of a build are kept for inspection."""
    kept = kept_volumes(session, [build_id]).get(build_id)
    if kept:
        raise WrongState(what, f"its volumes are kept: {', '.join(kept)}", discard_command(build_id))


def _left_of(session: Session, build_id: str) -> list[Resource]:
    query = select(Resource).where(
        Resource.build == build_id,
        Resource.kind == VOLUME,
        one_of(Resource.state, (*PENDING, ResourceState.HELD)),
    )
    return list(session.execute(query.order_by(Resource.seq)).scalars())
