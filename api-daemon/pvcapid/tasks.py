"""Tasks, which are builds: what runs, what waits, what was, and the end of one that shall not go on."""

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import desc, select
from sqlalchemy.orm import Session, defer

from pvcapid.audit import changing
from pvcapid.builds import TASK_NAME
from pvcapid.endpoint import endpoint
from pvcapid.fields import Flag, NoParameters, Whole, documented
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvccommon.builds import cancel_build, end_without_node, find_build
from pvccommon.errors import NotFound, PvcError
from pvccommon.kept_volumes import discard_command, discard_volumes, kept_volumes
from pvccommon.models import ACTIVE_STATES, FINAL_STATES, Build, BuildState, one_of
from pvccommon.placement import alive_nodes
from pvccommon.queue import call_node
from pvccommon.steps import TOTAL

log = logging.getLogger(__name__)
blueprint = Blueprint("tasks", __name__)
# A cancelled build ends within five seconds; so long its node and its process are given to see to that.
CANCEL_S = 3.0
TELL_TIMEOUT_S = 2
CANCEL_POLL_S = 0.1
DISCARD_TIMEOUT_S = 15
DEFAULT_HISTORY = 100

# The words existing clients know. They end their wait at the first that is neither PENDING nor RUNNING.
TASK_STATES = {
    BuildState.QUEUED.value: "PENDING",
    BuildState.RUNNING.value: "RUNNING",
    BuildState.UNDOING.value: "RUNNING",
    BuildState.SUCCEEDED.value: "SUCCESS",
    BuildState.FAILED.value: "FAILURE",
    BuildState.CANCELLED.value: "FAILURE",
}


class TaskFilter(Schema):
    history = Flag(load_default=False, metadata=documented("list all builds, newest first"))
    limit = Whole(1, 10_000, load_default=DEFAULT_HISTORY, metadata=documented("how many, with history"))


class StageElement(Schema):
    stage = fields.String()
    started = fields.String()
    finished = fields.String(allow_none=True)
    seconds = fields.Float(allow_none=True)


class TaskElement(Schema):
    state = fields.String(metadata=documented("PENDING, RUNNING, SUCCESS or FAILURE"))
    current = fields.Integer()
    total = fields.Integer()
    status = fields.String()
    id = fields.String()
    name = fields.String()
    build_state = fields.String(allow_none=True)
    vm = fields.String(allow_none=True)
    profile = fields.String(allow_none=True)
    node = fields.String(allow_none=True)
    stage = fields.String(allow_none=True)
    percent = fields.Float(allow_none=True)
    created = fields.String(allow_none=True)
    started = fields.String(allow_none=True)
    finished = fields.String(allow_none=True)
    error = fields.Dict(allow_none=True, metadata=documented("kind, what, why, hint, stage"))
    stages = fields.List(fields.Nested(StageElement))
    retry_of = fields.String(allow_none=True, metadata=documented("the build whose plan this one runs again"))
    kept_volumes = fields.List(
        fields.String(), metadata=documented("pool/volume of each that is kept for inspection")
    )


class TaskLists(Schema):
    active = fields.Dict(metadata=documented("node to entries {id, name, args, kwargs} of builds that run"))
    reserved = fields.Dict(metadata=documented("node to entries of builds that wait"))
    scheduled = fields.Dict(metadata=documented("always empty"))
    builds = fields.List(fields.Nested(TaskElement), metadata=documented("only with history"))


@blueprint.get("/tasks")
@endpoint(TaskFilter, TaskLists)
def list_tasks(given: Given) -> Any:
    """List builds that run or wait, by node; with history, all builds."""
    with reading() as session:
        if given["history"]:
            newest = light_query().order_by(desc(Build.number)).limit(given["limit"])
            rows = session.execute(newest).scalars().all()
            kept = kept_volumes(session, [build.id for build in rows])
            return {"builds": [task_element(build, kept.get(build.id)) for build in rows]}
        builds = (
            session.execute(light_query().where(one_of(Build.state, ACTIVE_STATES)).order_by(Build.number))
            .scalars()
            .all()
        )
    return {
        "active": _by_node(build for build in builds if TASK_STATES[build.state] == "RUNNING"),
        "reserved": _by_node(build for build in builds if TASK_STATES[build.state] == "PENDING"),
        "scheduled": {},
    }


@blueprint.get("/tasks/<task_id>")
@endpoint(NoParameters, TaskElement)
def get_task(given: Given, task_id: str) -> Any:
    """Show a build. An unknown id is a failed task: existing clients would wait for ever, or crash on 404."""
    with reading() as session:
        build = session.execute(light_query().where(Build.id == task_id)).scalar_one_or_none()
        return shown_task(session, build) if build is not None else unknown_task(task_id)


@blueprint.post("/tasks/<task_id>/cancel")
@endpoint()
def cancel_task(given: Given, task_id: str) -> str:
    """End a build; what it made is undone. Safe to repeat."""
    deadline = time.monotonic() + CANCEL_S
    with changing(f"cancel task {task_id[:40]}") as session:
        message = cancel_build(session, task_id)
        build = session.get(Build, task_id)
        alive = build.node in alive_nodes(session, services().config.node.dead_after)
    if build.state in FINAL_STATES or (alive and (_hurry(build) or _moves_on(build, deadline))):
        return message
    with services().database.session() as session:
        return end_without_node(session, task_id) or message


@blueprint.post("/tasks/<task_id>/discard")
@endpoint()
def discard_task(given: Given, task_id: str) -> str:
    """Remove the volumes kept of a build that ended badly. Safe to repeat."""
    with changing(f"discard the volumes of task {task_id[:40]}") as session:
        rows = discard_volumes(session, find_build(session, task_id, lock=True))
        alive = alive_nodes(session, services().config.node.dead_after)
    later = [node for node in sorted({row.node for row in rows}) if not _discard_on(node, task_id, alive)]
    volumes = ", ".join(row.name for row in rows)
    if later:
        return f"The volumes {volumes} will be removed; node {', '.join(later)} has not done it yet."
    return f"Removed the volumes {volumes}."


def _discard_on(node: str, task_id: str, alive: Collection[str]) -> bool:
    """Whether a node has removed what it keeps of a build; if not, its sweeper does it later."""
    if node not in alive:
        return False
    try:
        answer = call_node(services().queue, node, "build.discard", {"build": task_id}, DISCARD_TIMEOUT_S)
    except PvcError as exc:
        log.warning("node %s will remove the volumes of %s later: %s", node, task_id, exc.message)
        return False
    return not answer["failures"]


def light_query() -> Any:
    """Builds without what no answer shows: plans hold whole documents, and tasks are asked for often."""
    return select(Build).options(defer(Build.plan), defer(Build.secrets))


def find_task(session: Session, task_id: str) -> Build:
    """The row of a build, for showing. Raises NotFound."""
    build: Build | None = session.execute(light_query().where(Build.id == task_id)).scalar_one_or_none()
    if build is None:
        raise NotFound(f"find task {task_id[:40]}", "there is no such task", "see: pvc cluster task")
    return build


def shown_task(session: Session, build: Build) -> dict[str, Any]:
    """A task with the volumes that are kept of it."""
    return task_element(build, kept_volumes(session, [build.id]).get(build.id))


def task_element(build: Build, kept: Sequence[str] | None = None) -> dict[str, Any]:
    """The shape of a task, for whoever shows one. `kept`: its volumes that are kept for inspection."""
    return {
        "state": TASK_STATES[build.state],
        "current": build.step,
        "total": TOTAL,
        "status": _status(build, kept),
        "id": build.id,
        "name": TASK_NAME,
        "build_state": build.state,
        "vm": build.vm,
        "profile": build.profile,
        "node": build.node,
        "stage": build.stage,
        "percent": build.percent,
        **{key: _iso(getattr(build, key)) for key in ("created", "started", "finished")},
        "error": build.error,
        "stages": build.stages,
        "retry_of": build.retry_of,
        "kept_volumes": list(kept or ()),
    }


def _status(build: Build, kept: Sequence[str] | None) -> str:
    status = build.status or build.state
    if not kept or build.state not in FINAL_STATES:
        return status
    return f"{status}; kept for inspection: {', '.join(kept)} (to remove them: {discard_command(build.id)})"


def unknown_task(task_id: str) -> dict[str, Any]:
    why = "there is no such task"
    error = {"kind": "not-found", "what": f"find task {task_id[:40]}", "why": why, "hint": "", "stage": None}
    nothing = dict.fromkeys(
        (
            *("build_state", "vm", "profile", "node", "stage", "percent", "created", "started", "finished"),
            "retry_of",
        )
    )
    known = {
        "state": "FAILURE",
        "current": TOTAL,
        "total": TOTAL,
        "status": f"find task {task_id[:40]}: {why}",
    }
    return {
        **known,
        "id": task_id[:40],
        "name": TASK_NAME,
        **nothing,
        "error": error,
        "stages": [],
        "kept_volumes": [],
    }


def _by_node(builds: Iterable[Build]) -> dict[str, list[dict[str, Any]]]:
    nodes: dict[str, list[dict[str, Any]]] = {}
    for build in builds:
        entry = {"id": build.id, "name": TASK_NAME, "args": [], "kwargs": _kwargs(build)}
        nodes.setdefault(build.node, []).append(entry)
    return nodes


def _kwargs(build: Build) -> dict[str, Any]:
    """What was asked for. Existing clients need at least one key besides `run_on`."""
    return {
        "vm_name": build.vm,
        "profile_name": build.profile,
        **(build.requested or {}),
        "run_on": build.node,
    }


def _iso(moment: Any) -> str | None:
    return moment.isoformat() if moment is not None else None


def _hurry(build: Build) -> bool:
    """Whether the node has been told; else its process may still see the row by itself."""
    try:
        call_node(services().queue, build.node, "build.cancel", {"build": build.id}, TELL_TIMEOUT_S)
    except PvcError as exc:
        log.warning("node %s has not heard of the cancel of %s: %s", build.node, build.id, exc.message)
        return False
    return True


def _moves_on(build: Build, deadline: float) -> bool:
    """Whether a build goes on towards its end by itself until the deadline (time.monotonic)."""
    before = build.state
    while time.monotonic() < deadline:
        with reading() as session:
            if session.execute(select(Build.state).where(Build.id == build.id)).scalar() != before:
                return True
        time.sleep(CANCEL_POLL_S)
    return False
