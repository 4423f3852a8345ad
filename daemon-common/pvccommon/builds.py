"""The life of a build's row: accepted, leased, reported on, ended. Every change of `Build.state` is here.

queued ──take──▶ running ──▶ succeeded
  │                 └──▶ undoing ──▶ failed | cancelled
  └──cancel──▶ cancelled
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pvccommon.errors import Exists, NotFound, WrongState
from pvccommon.models import FINAL_STATES, Build, BuildState, Json, Vm, now
from pvccommon.planning import PlannedBuild
from pvccommon.steps import FINAL_STEP


def accept_build(session: Session, planned: PlannedBuild, requested: Json) -> Build:
    """Write the row of a plan that passed its checks; the caller sends it after the commit.

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


def take_build(session: Session, build_id: str, owner: str, lease: timedelta) -> Build | None:
    """Take the lease of a waiting build, or None when it is taken or has ended (a second delivery)."""
    build = _lock_build(session, build_id)
    if build is None or build.state != BuildState.QUEUED or build.lease_owner is not None:
        return None
    build.state = BuildState.RUNNING.value
    build.lease_owner = owner
    build.lease_until = now() + lease
    build.started = now()
    build.status = f"started on node {build.node}"
    return build


def renew_lease(session: Session, build_id: str, owner: str, lease: timedelta) -> Build | None:
    """Keep the lease; None when it is lost, and then the caller must touch nothing any more."""
    build = _lock_build(session, build_id)
    if build is None or build.lease_owner != owner or build.state in FINAL_STATES:
        return None
    build.lease_until = now() + lease
    return build


def _lock_build(session: Session, build_id: str) -> Build | None:
    query = select(Build).where(Build.id == build_id).with_for_update()
    build: Build | None = session.execute(query).scalar_one_or_none()
    return build


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
    """The end: state, times, lease and secrets dropped."""
    leave_stage(build)
    build.state = state.value
    build.error = build.error or error
    build.finished = now()
    build.lease_owner = build.lease_until = None
    build.percent = None
    build.secrets = {}
    if state is BuildState.SUCCEEDED:
        build.step = FINAL_STEP
    elif build.error:
        build.status = describe_error(build.error)


def describe_error(error: Json) -> str:
    """One line for the task's status."""
    text = f"{error['what']}: {error['why']}" if error["why"] else str(error["what"])
    stage = f"stage {error['stage']}: " if error.get("stage") else ""
    return f"{stage}{text} (hint: {error['hint']})" if error.get("hint") else f"{stage}{text}"
