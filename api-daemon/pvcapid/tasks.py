"""Tasks, which are builds: what runs, what waits, what was, and the end of one that shall not go on."""

import logging
from collections.abc import Iterable
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
from pvccommon.builds import cancel_build
from pvccommon.errors import NotFound, PvcError
from pvccommon.models import ACTIVE_STATES, Build, BuildState, one_of
from pvccommon.queue import call_node
from pvccommon.steps import TOTAL

log = logging.getLogger(__name__)
blueprint = Blueprint("tasks", __name__)
CANCEL_TIMEOUT_S = 5
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
            return {"builds": [task_element(build) for build in rows]}
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
    return task_element(build) if build is not None else unknown_task(task_id)


@blueprint.post("/tasks/<task_id>/cancel")
@endpoint()
def cancel_task(given: Given, task_id: str) -> str:
    """End a build; what it made is undone. Safe to repeat."""
    with changing(f"cancel task {task_id[:40]}") as session:
        message = cancel_build(session, task_id)
        build = session.get(Build, task_id)
    if build.state != BuildState.CANCELLED:
        _hurry(build)
    return message


def light_query() -> Any:
    """Builds without what no answer shows: plans hold whole documents, and tasks are asked for often."""
    return select(Build).options(defer(Build.plan), defer(Build.secrets))


def find_task(session: Session, task_id: str) -> Build:
    """The row of a build, for showing. Raises NotFound."""
    build: Build | None = session.execute(light_query().where(Build.id == task_id)).scalar_one_or_none()
    if build is None:
        raise NotFound(f"find task {task_id[:40]}", "there is no such task", "see: pvc cluster task")
    return build


def task_element(build: Build) -> dict[str, Any]:
    """The shape of a task, for whoever shows one."""
    return {
        "state": TASK_STATES[build.state],
        "current": build.step,
        "total": TOTAL,
        "status": build.status or build.state,
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
    }


def unknown_task(task_id: str) -> dict[str, Any]:
    why = "there is no such task"
    error = {"kind": "not-found", "what": f"find task {task_id[:40]}", "why": why, "hint": "", "stage": None}
    nothing = dict.fromkeys(
        ("build_state", "vm", "profile", "node", "stage", "percent", "created", "started", "finished")
    )
    known = {
        "state": "FAILURE",
        "current": TOTAL,
        "total": TOTAL,
        "status": f"find task {task_id[:40]}: {why}",
    }
    return {**known, "id": task_id[:40], "name": TASK_NAME, **nothing, "error": error, "stages": []}


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


def _hurry(build: Build) -> None:
    """Tell the node at once; should it not hear, it sees the row with its next report."""
    try:
        call_node(services().queue, build.node, "build.cancel", {"build": build.id}, CANCEL_TIMEOUT_S)
    except PvcError as exc:
        log.warning("node %s will see the cancel of %s later: %s", build.node, build.id, exc.message)
