"""Making VMs: plan (a dry run) and create."""

import logging
from typing import Any

from flask import Blueprint, Response, jsonify, url_for
from marshmallow import Schema, fields
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from pvcapid import audit, script_arguments
from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Flag, Name, Texts, VmName, documented
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvccommon.builds import accept_build
from pvccommon.declarations import Declaration, mask_texts
from pvccommon.errors import Busy, EnvironmentFault, Exists, PvcError, TimedOut, WrongInput
from pvccommon.models import Build, Profile, now
from pvccommon.placement import lock_placement
from pvccommon.planning import BuildRequest, PlannedBuild, plan_build
from pvccommon.queue import call_node, send_build

log = logging.getLogger(__name__)
blueprint = Blueprint("builds", __name__)
TASK_NAME = "provisioner.create"
FIND_TIMEOUT_S = 10


class BuildParameters(Schema):
    name = VmName(required=True, metadata=documented("name of the VM, which is its host name"))
    profile = Name(required=True)
    define_vm = Flag(load_default=True, metadata=documented("define the VM; else only its volumes are made"))
    start_vm = Flag(load_default=True, metadata=documented("start the VM at the end"))
    arg = Texts(load_default=list, metadata=documented("key=value, stronger than those of the profile"))
    keep_on_failure = Flag(
        load_default=False,
        metadata=documented("when it fails, keep the volumes for inspection until they are discarded"),
    )


class Accepted(Schema):
    task_id = fields.String(required=True)
    task_name = fields.String(required=True)
    run_on = fields.String(required=True)


class CheckElement(Schema):
    name = fields.String()
    ok = fields.Boolean()
    message = fields.String()
    hint = fields.String()


class ProblemElement(Schema):
    path = fields.String()
    message = fields.String()


class PlanAnswer(Schema):
    ok = fields.Boolean(metadata=documented("whether create would be accepted now"))
    node = fields.String()
    profile = fields.String()
    define = fields.Boolean()
    start = fields.Boolean()
    vm = fields.Dict(metadata=documented("name, uuid, id"))
    system = fields.Dict()
    script = fields.Dict(metadata=documented("name, sha256"))
    volumes = fields.List(fields.Dict())
    networks = fields.List(fields.Dict())
    domain = fields.Dict()
    arguments = fields.Dict(metadata=documented("typed values, secret ones as <redacted>"))
    checks = fields.List(fields.Nested(CheckElement))
    problems = fields.List(fields.Nested(ProblemElement))


@blueprint.post("/provisioner/create")
@endpoint(BuildParameters, Accepted, status=202, lenient=True, absent=400)
def create_vm(given: Given) -> Response:
    """Accept the build of a VM and send it to its node."""
    what = f"create VM {given.get('name', '')}".strip()
    volumes = VolumeFinder()
    # First without the lock, so that nobody waits while nodes are asked; the second plan has their answers.
    with reading() as session:
        planned = _plan(session, given, volumes)
    given.require_ok(what)
    require_plan_ok(what, planned, volumes)
    with changing(what, status=202) as session:
        lock_placement(session)
        planned = plan_build(session, services().config, _wanted(given), find_volume=volumes)
        require_plan_ok(what, planned, volumes)
        keep = given["keep_on_failure"]
        build = accept_build(session, planned, _requested(given, planned), keep_on_failure=keep)
    send(build)
    return accepted(build)


@blueprint.post("/provisioner/plan")
@endpoint(BuildParameters, PlanAnswer, dry_run=True, lenient=True)
def plan_vm(given: Given) -> Any:
    """Say what create would make, on which node, and how every check comes out. Changes nothing."""
    with reading() as session:
        planned = _plan(session, given, VolumeFinder())
    given.require_ok(f"plan VM {given.get('name', '')}".strip())
    return _plan_answer(planned)


def accepted(build: Build) -> Response:
    """The answer to a request whose build has been accepted."""
    answer = jsonify(Accepted().dump({"task_id": build.id, "task_name": TASK_NAME, "run_on": build.node}))
    answer.status_code = 202
    answer.headers["Location"] = url_for("tasks.get_task", task_id=build.id)
    return answer


def _plan(session: Session, given: Given, volumes: "VolumeFinder") -> PlannedBuild:
    """Plan with what is right; when parameters are wrong by themselves, the plan's problems join theirs."""
    request = _wanted(given)
    _look_at_arguments(session, request, given)
    planned = plan_build(session, services().config, request, find_volume=volumes)
    if given.problems and "profile" in given:
        given.problems.extend(planned.problems)
    return planned


def _wanted(given: Given) -> BuildRequest:
    return BuildRequest(
        name=given.get("name", "unnamed"),
        profile=given.get("profile", ""),
        define=given.get("define_vm", True),
        start=given.get("start_vm", True),
        arguments=tuple(given.get("arg", ())),
    )


class VolumeFinder:
    """Asks nodes which volumes there are, once for each; after a failure nothing more is asked."""

    def __init__(self) -> None:
        self.failure: PvcError | None = None
        self._answers: dict[tuple[str, str, str], dict[str, Any] | None] = {}

    def __call__(self, node: str, pool: str, volume: str) -> dict[str, Any] | None:
        if self.failure:
            raise self.failure
        key = node, pool, volume
        if key not in self._answers:
            self._answers[key] = self._ask(node, {"pool": pool, "volume": volume})
        return self._answers[key]

    def _ask(self, node: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = call_node(services().queue, node, "volume.find", arguments, FIND_TIMEOUT_S)
        except (EnvironmentFault, Busy, TimedOut) as exc:
            self.failure = exc
            raise
        found: dict[str, Any] | None = answer["found"]
        return found


def _look_at_arguments(session: Session, request: BuildRequest, given: Given) -> None:
    """Which may stand in the audit row, and whether a masked value came back."""
    profile = session.execute(select(Profile).where(Profile.name == request.profile)).scalar_one_or_none()
    if profile is not None and "arg" in given:
        declared = script_arguments.declaration_of(profile.script)
        audit.show_arguments(script_arguments.without_secrets(declared, request.arguments))
        script_arguments.restore_secrets(declared, None, given, [])


def require_plan_ok(what: str, planned: PlannedBuild, volumes: VolumeFinder) -> None:
    """Raise what stands against the build. That a check could not be made is no fault of the request."""
    failure = volumes.failure
    if failure and not planned.problems:
        raise type(failure)(what, failure.message, failure.hint) from failure
    try:
        planned.require_ok()
    except (Exists, WrongInput) as exc:
        raise type(exc)(what, hint=exc.hint, problems=exc.problems) from exc


def _requested(given: Given, planned: PlannedBuild) -> dict[str, Any]:
    """The request as the task list shows it."""
    declared = Declaration.from_dict(planned.plan["script"]["declaration"])
    return {
        "vm_name": given["name"],
        "profile_name": given["profile"],
        "define_vm": given["define_vm"],
        "start_vm": given["start_vm"],
        "script_run_args": mask_texts(declared, given["arg"]) or None,
        "run_on": planned.node,
    }


def send(build: Build) -> None:
    """Hand the committed build to its node; one that cannot be sent now is sent by a sweeper later."""
    try:
        send_build(services().queue, build.id, build.node)
    except PvcError as exc:
        log.warning("build %s waits to be sent: %s", build.id, exc.message)
        return
    with services().database.session() as session:
        # Only this column: the node may be working on the row already.
        session.execute(update(Build).where(Build.id == build.id).values(sent=now()))


def _plan_answer(planned: PlannedBuild) -> dict[str, Any]:
    plan = planned.plan
    script = plan.get("script", {})
    return {
        "ok": planned.ok,
        "node": planned.node,
        "profile": plan.get("profile", ""),
        "define": plan.get("define", True),
        "start": plan.get("start", True),
        "script": {key: script[key] for key in ("name", "sha256") if key in script},
        **{key: plan.get(key, {}) for key in ("vm", "system", "domain", "arguments")},
        "volumes": plan.get("volumes", []),
        "networks": [_network_element(network) for network in plan.get("networks", [])],
        "checks": planned.checks,
        "problems": planned.problems,
    }


def _network_element(network: dict[str, Any]) -> dict[str, Any]:
    """A user-mode network has no bridge; the plan names one because older scripts expect it."""
    return {**network, "bridge": None} if network.get("user") else network
