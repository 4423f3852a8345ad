"""Running the plan of a build again that has failed or was cancelled: the same VM, the same inputs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from pvccommon.checks import FindVolume
from pvccommon.config import Config
from pvccommon.declarations import REDACTED, Declaration, split_secrets, type_arguments
from pvccommon.errors import Problem, WrongState
from pvccommon.kept_volumes import require_nothing_kept
from pvccommon.models import Build, BuildState, Json
from pvccommon.placement import Candidate, allowed_nodes, choose_node, is_fit, load_candidates
from pvccommon.planning import PlannedBuild, run_checks, settle_on

RETRIED = (BuildState.FAILED, BuildState.CANCELLED)


@dataclass(frozen=True)
class PlannedRetry:
    """`planned`: the frozen plan again, checked anew. `note`: what its log should begin with."""

    planned: PlannedBuild
    note: str


def plan_retry(
    session: Session,
    config: Config,
    build: Build,
    arguments: Sequence[str],
    *,
    find_volume: FindVolume | None = None,
) -> PlannedRetry:
    """The plan of an ended build, checked against the cluster as it is now; reads only.

    `arguments` (`key=value`) can only be values of secret arguments. Only what the node decides is settled
    anew, and only when the plan's own node cannot take it. Raises WrongState when there is nothing to retry.
    """
    require_retriable(session, build)
    problems: list[Problem] = []
    plan = copy.deepcopy(build.plan)
    secrets = _secrets(build, plan, arguments, problems)
    candidates = load_candidates(session, config.node.dead_after)
    node, note = _place(candidates, plan, config.node.reserved_memory_mib)
    if node is not None and node.name != build.plan["node"]:
        settle_on(node, plan, problems)
    checks = run_checks(session, config, plan, node, candidates, find_volume)
    return PlannedRetry(
        PlannedBuild(plan, secrets, checks, tuple(problems)), f"retry of build {build.id}{note}"
    )


def require_retriable(session: Session, build: Build) -> None:
    """Raises WrongState when the build has not ended, has succeeded, or its volumes are kept."""
    what = f"retry task {build.id}"
    if build.state == BuildState.SUCCEEDED:
        raise WrongState(what, "it has succeeded", "only builds that failed or were cancelled are retried")
    if build.state not in RETRIED:
        raise WrongState(what, f"it has not ended: {build.state}", f"pvc cluster task {build.id}")
    require_nothing_kept(session, build.id, what)


def _secrets(build: Build, plan: Json, texts: Sequence[str], problems: list[Problem]) -> Json:
    """The kept values of secret arguments with those given now; a problem for each that is missing."""
    declaration = Declaration.from_dict(plan["script"]["declaration"])
    secret = tuple(argument for argument in declaration.arguments if argument.secret)
    known = {argument.name for argument in secret}
    for name in dict.fromkeys(text.partition("=")[0] for text in texts):
        if name not in known:
            can = ", ".join(sorted(known)) or "the script has none"
            why = f"a retry takes secret arguments only ({can}); for others make a new build"
            problems.append(Problem(f"arguments.{name[:64]}", why))
    ours = [text for text in texts if text.partition("=")[0] in known]
    for text in ours:
        if text.partition("=")[2] == REDACTED:
            name = text.partition("=")[0]
            problems.append(Problem(f"arguments.{name}", f"{REDACTED} is no value; leave it out to keep it"))
    # Not one of a profile or request: neither defaults nor "is required" count.
    blank = replace(declaration, arguments=tuple(replace(a, required=False, default=None) for a in secret))
    values, _, wrong = type_arguments(blank, ours)
    problems.extend(wrong)
    given = split_secrets(declaration, values)[1]
    needed = {name for name, value in plan["arguments"].items() if name in known and value == REDACTED}
    secrets = {**build.secrets, **given}
    for name in sorted(needed - secrets.keys() - {problem.path.partition(".")[2] for problem in wrong}):
        problems.append(
            Problem(f"arguments.{name}", f"its value is not kept any more; give it again: -a {name}=…")
        )
    plan["arguments"] |= dict.fromkeys(given, REDACTED)
    return secrets


def _place(candidates: Sequence[Candidate], plan: Json, reserved_mib: int) -> tuple[Candidate | None, str]:
    """The plan's own node if it can take the VM, or else the best there is; and what to say about it."""
    before = plan["node"]
    own = next((node for node in allowed_nodes(candidates, plan) if node.name == before), None)
    if own is not None and is_fit(own, plan, reserved_mib):
        return own, ""
    chosen = choose_node(candidates, plan, reserved_mib)
    if chosen is None or chosen.name == before:
        return chosen, ""
    reason = "is not running" if own is None else "cannot take it any more"
    return chosen, f"; node {before} {reason}, so it goes to {chosen.name}"
