"""Running a build again that has failed or was cancelled."""

from flask import Blueprint, Response
from marshmallow import Schema
from sqlalchemy.orm import Session

from pvcapid.audit import changing
from pvcapid.builds import Accepted, VolumeFinder, accepted, require_plan_ok, send
from pvcapid.endpoint import endpoint
from pvcapid.fields import Texts, documented
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvccommon.builds import accept_build, find_build
from pvccommon.models import Build, BuildEvent
from pvccommon.placement import lock_placement
from pvccommon.retries import PlannedRetry, plan_retry

blueprint = Blueprint("retries", __name__)


class RetryParameters(Schema):
    arg = Texts(
        load_default=list,
        metadata=documented("key=value, only for arguments that the script declares secret"),
    )


@blueprint.post("/tasks/<task_id>/retry")
@endpoint(RetryParameters, Accepted, status=202)
def retry_task(given: Given, task_id: str) -> Response:
    """Accept a new build from the frozen plan of one that failed or was cancelled."""
    what = f"retry task {task_id[:40]}"
    volumes = VolumeFinder()
    # First without the lock, so that nobody waits while nodes are asked; the second plan has their answers.
    with reading() as session:
        _plan(session, what, find_build(session, task_id), given, volumes)
    with changing(what, status=202) as session:
        lock_placement(session)
        earlier = find_build(session, task_id, lock=True)
        retry = _plan(session, what, earlier, given, volumes)
        build = accept_build(
            session,
            retry.planned,
            {**earlier.requested, "run_on": retry.planned.node},
            keep_on_failure=earlier.keep_on_failure,
            retry_of=earlier.id,
        )
        session.add(BuildEvent(build=build.id, seq=1, stage="collect", level="info", message=retry.note))
    send(build)
    return accepted(build)


def _plan(session: Session, what: str, build: Build, given: Given, volumes: VolumeFinder) -> PlannedRetry:
    retry = plan_retry(session, services().config, build, given["arg"], find_volume=volumes)
    require_plan_ok(what, retry.planned, volumes)
    return retry
