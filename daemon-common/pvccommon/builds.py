"""The life of a build's row: accepted, leased, reported on, ended. Every change of `Build.state` is here.

queued ──take──▶ running ──▶ succeeded
  │                 └──▶ undoing ──▶ failed | cancelled
  └──cancel──▶ cancelled
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import Text, cast, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pvccommon.database import database_now
from pvccommon.errors import Exists, LeaseLost, NotFound, WrongState
from pvccommon.kept_volumes import hold_volumes
from pvccommon.models import FINAL_STATES, Build, BuildEvent, BuildState, Json, Vm, now, one_of
from pvccommon.planning import PlannedBuild
from pvccommon.steps import FINAL_STEP

# Longer than any pause between two statements of ours, shorter than a cancel may take.
LOCK_IDLE_MS = "2000"
NO_SECRETS = "{}"  # as the column stores it
FIRST_STAGE = "collect"  # what is said before a build runs stands under it


def accept_build(
    session: Session,
    planned: PlannedBuild,
    requested: Json,
    *,
    keep_on_failure: bool = False,
    retry_of: str | None = None,
) -> Build:
    """Write the row of a plan that passed its checks; the caller sends it after the commit.

    `keep_on_failure`: the volumes stay for inspection unless it succeeds. `retry_of`: id of the build whose
    plan this is.

    Raises Exists when a build of that VM is under way, or the VM has come to exist since the checks.
    """
    planned.require_ok()
    plan = planned.plan
    vm = plan["vm"]["name"]
    build = Build(
        vm=vm,
        profile=plan["profile"],
        node=plan["node"],
        memory_mib=plan["system"]["vram_mb"],
        plan=plan,
        secrets=planned.secrets,
        requested=requested,
        keep_on_failure=keep_on_failure,
        retry_of=retry_of,
        state=BuildState.QUEUED.value,
        status=f"waiting for node {plan['node']}",
    )
    session.add(build)
    try:
        session.flush()
    except IntegrityError as exc:
        raise Exists(
            f"create VM {vm}", "another build of this VM is under way", "see: pvc cluster task"
        ) from exc
    if session.get(Vm, vm):
        raise Exists(f"create VM {vm}", "a VM of this name exists", f"pvc vm remove {vm}")
    return build


def find_build(session: Session, build_id: str, *, lock: bool = False) -> Build:
    """The row; locked until the end of the transaction when asked. Raises NotFound."""
    build = _lock_build(session, build_id) if lock else session.get(Build, build_id)
    if build is None:
        raise NotFound(f"find task {build_id[:40]}", "there is no such task", "see: pvc cluster task")
    return build


def cancel_build(session: Session, build_id: str) -> str:
    """Ask for the end of a build. One that waits ends at once; one that runs is ended by its node.

    Returns a message. Safe to repeat; one that is being undone already is left alone. Raises NotFound,
    WrongState when it has ended.
    """
    build = find_build(session, build_id, lock=True)
    if build.state in FINAL_STATES:
        raise WrongState(f"cancel task {build_id}", f"it has ended already: {build.state}")
    if build.state == BuildState.UNDOING:
        return f"Task {build_id} has ended badly or was cancelled already; what it made is being undone."
    build.cancel_requested = True
    if build.state == BuildState.QUEUED:
        finish_build(build, BuildState.CANCELLED, cancelled_error(build))
        return f"Cancelled task {build_id}; nothing had been made."
    return f"Cancelling task {build_id} on node {build.node}; what it made is being undone."


def end_without_node(session: Session, build_id: str) -> str | None:
    """End a build that shall end and whose node does not answer. None when it has ended by itself.

    Its process, should it live, has lost its lease by this, and ends within a second. What it made stays
    pending in the journal: its node undoes it (Sweeper), volumes to be kept are held. Returns a message.
    """
    build = find_build(session, build_id, lock=True)
    if build.state in FINAL_STATES:
        return None
    if build.keep_on_failure:
        hold_volumes(session, build.id)
    error = build.error or cancelled_error(build)
    state = BuildState.CANCELLED if error["kind"] == "cancelled" else BuildState.FAILED
    finish_build(build, state, error)
    later = f"node {build.node} does not answer; it undoes what was made when it is back"
    build.status = f"{build.status}; {later}"
    return f"Ended task {build_id}; {later}."


def cancelled_error(build: Build) -> Json:
    why = (
        f"cancelled by an operator in stage {build.stage}"
        if build.stage
        else "cancelled by an operator before it ran"
    )
    return {
        "kind": "cancelled",
        "what": f"create VM {build.vm}",
        "why": why,
        "hint": "",
        "stage": build.stage,
    }


def longest_waiting(session: Session, node: str) -> str | None:
    """The id of the build that this node should take next: builds run in the order of their acceptance."""
    waiting = select(Build.id).where(Build.node == node, Build.state == BuildState.QUEUED.value)
    found: str | None = session.execute(waiting.order_by(Build.number).limit(1)).scalar_one_or_none()
    return found


def waiting_since(session: Session, node: str, at_least: timedelta) -> list[str]:
    """The ids of builds that wait for this node, and were accepted so long ago; in order of acceptance."""
    waiting = select(Build.id).where(
        Build.node == node,
        Build.state == BuildState.QUEUED.value,
        Build.created < database_now(session) - at_least,
    )
    return list(session.execute(waiting.order_by(Build.number)).scalars())


def take_build(session: Session, build_id: str, node: str, owner: str, lease: timedelta) -> Build | None:
    """Take the lease of a build that waits for this node.

    None when it is taken or has ended (a second delivery), or waits for another node (it was moved).
    """
    build = _lock_build(session, build_id)
    if build is None or build.state != BuildState.QUEUED or build.node != node:
        return None
    build.state = BuildState.RUNNING.value
    give_lease(session, build, owner, lease)
    build.started = now()
    build.status = f"started on node {build.node}"
    return build


def renew_lease(session: Session, build_id: str, owner: str, lease: timedelta) -> Build | None:
    """Keep the lease; None when it is lost, and then the caller must touch nothing any more."""
    build = _lock_build(session, build_id)
    if build is None or build.lease_owner != owner or build.state in FINAL_STATES:
        return None
    give_lease(session, build, owner, lease)
    return build


def give_lease(session: Session, build: Build, owner: str, lease: timedelta) -> None:
    """The caller has locked the row. Leases are told by the database's clock."""
    build.lease_owner = owner
    build.lease_until = database_now(session) + lease


def find_held(session: Session, build_id: str, owner: str) -> Build:
    """The row, locked, of a build that its holder changes. Raises LeaseLost when that is somebody else."""
    build = find_build(session, build_id, lock=True)
    if build.lease_owner != owner:
        raise LeaseLost(f"go on with build {build_id}", "this process does not hold its lease (any more)")
    return build


def _lock_build(session: Session, build_id: str) -> Build | None:
    """The row, locked; a holder that stops in the middle (a frozen node) loses connection and lock soon."""
    patience = func.set_config("idle_in_transaction_session_timeout", LOCK_IDLE_MS, True)
    query = select(Build, patience).where(Build.id == build_id).with_for_update()
    build: Build | None = session.execute(query).scalar_one_or_none()
    return build


def note_event(session: Session, build: Build, level: str, message: str) -> None:
    """Add a line to the log of a build nobody works on; the caller has locked its row."""
    last = session.execute(select(func.max(BuildEvent.seq)).where(BuildEvent.build == build.id)).scalar() or 0
    stage = build.stage or FIRST_STAGE
    session.add(BuildEvent(build=build.id, seq=last + 1, stage=stage, level=level, message=message))


def enter_stage(build: Build, step: int, stage: str, status: str) -> None:
    """Note that a stage begins; the one before ends here."""
    leave_stage(build)
    build.step, build.stage, build.status, build.percent = step, stage, status, None
    build.stages = [
        *build.stages,
        {"stage": stage, "started": now().isoformat(), "finished": None, "seconds": None},
    ]


def leave_stage(build: Build) -> None:
    if not build.stages or build.stages[-1]["finished"]:
        return
    last: dict[str, Any] = dict(build.stages[-1])
    ended = now()
    last["finished"] = ended.isoformat()
    last["seconds"] = round((ended - type(ended).fromisoformat(last["started"])).total_seconds(), 3)
    build.stages = [*build.stages[:-1], last]


def begin_undo(build: Build, error: Json) -> None:
    """The build has failed: keep the first error, go to `undoing`."""
    leave_stage(build)
    build.state = BuildState.UNDOING.value
    build.error = build.error or error
    build.status = f"undoing: {build.error['why'] or build.error['what']}"


def finish_build(build: Build, state: BuildState, error: Json | None = None) -> None:
    """The end: state, times, lease dropped. Secrets stay for a retry, unless it has succeeded."""
    leave_stage(build)
    build.state = state.value
    build.error = build.error or error
    build.finished = now()
    build.lease_owner = build.lease_until = None
    build.percent = None
    if state is BuildState.SUCCEEDED:
        build.secrets = {}
        build.step = FINAL_STEP
    elif build.error:
        build.status = describe_error(build.error)


def retry_command(build_id: str) -> str:
    return f"pvc cluster task retry {build_id}"


def drop_retried_secrets(session: Session, build: Build) -> None:
    """A build has succeeded: the builds it was a retry of need their secrets no more."""
    retried: Build | None = build
    while retried is not None and retried.retry_of:
        retried = session.get(Build, retried.retry_of)
        if retried is not None:
            retried.secrets = {}


def drop_old_secrets(session: Session, keep: timedelta) -> int:
    """Drop the secrets of builds that ended longer ago than `keep`; returns of how many."""
    ended = update(Build).where(
        one_of(Build.state, FINAL_STATES),
        Build.finished < func.now() - keep,
        cast(Build.secrets, Text) != NO_SECRETS,
    )
    dropped: int = session.execute(
        ended.values(secrets={}).execution_options(synchronize_session=False)
    ).rowcount
    return dropped


def describe_error(error: Json) -> str:
    """One line for the task's status."""
    text = f"{error['what']}: {error['why']}" if error["why"] else str(error["what"])
    stage = f"stage {error['stage']}: " if error.get("stage") else ""
    return f"{stage}{text} (hint: {error['hint']})" if error.get("hint") else f"{stage}{text}"
