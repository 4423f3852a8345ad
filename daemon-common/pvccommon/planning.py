"""From "make web1 from debian12" to a frozen plan: every input read once, every problem found at once.

Nothing here changes anything. The plan is plain JSON and all that a worker needs; secrets are kept apart.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon import declarations, names, planned_disks
from pvccommon.checks import NAME_CHECK, Check, FindVolume, check_plan
from pvccommon.config import Config
from pvccommon.declarations import Declaration
from pvccommon.errors import Exists, Problem, WrongInput
from pvccommon.models import Json, Profile
from pvccommon.placement import Candidate, choose_node, load_candidates

PLAN_VERSION = 1
SYSTEM_FIELDS = (
    "id",
    "name",
    "vcpu_count",
    "vram_mb",
    "serial",
    "vnc",
    "vnc_bind",
    "node_limit",
    "node_selector",
    "node_autostart",
    "migration_method",
    "migration_max_downtime",
)


@dataclass(frozen=True)
class BuildRequest:
    """What a user asked for. `arguments` are `key=value` texts which override those of the profile."""

    name: str
    profile: str
    define: bool = True
    start: bool = True
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedBuild:
    """A plan (empty when the request is too wrong to make one), with the outcome of every check.

    `plan`: {version, vm {name, uuid, id}, profile, node, define, start, script {name, source, sha256,
    declaration}, arguments (typed, secrets masked), argument_texts, system {…}, mac_template, networks [{vni,
    bridge, user, mac}], volumes [{pool, volume, disk_id, size_bytes, filesystem, filesystem_args, mountpoint,
    source_volume, source_snapshot}], cdroms (see `plan_cdroms`), image (see `plan_image`), userdata, domain
    {…}}. `secrets`: values of the secret arguments.
    """

    plan: Json
    secrets: Json
    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems and all(check.ok for check in self.checks)

    @property
    def node(self) -> str:
        return str(self.plan.get("node", ""))

    def require_ok(self) -> None:
        """Raise an error with all problems and failed checks unless everything is well: Exists when the VM's
        name is taken and nothing else is wrong, or else WrongInput."""
        failed = [Problem(check.name, check.message) for check in self.checks if not check.ok]
        if self.problems or failed:
            hint = next((check.hint for check in self.checks if not check.ok and check.hint), "")
            taken = not self.problems and [problem.path for problem in failed] == [NAME_CHECK]
            error = Exists if taken else WrongInput
            raise error("create the VM", problems=(*self.problems, *failed), hint=hint)


def plan_build(
    session: Session, config: Config, request: BuildRequest, *, find_volume: FindVolume | None = None
) -> PlannedBuild:
    """Plan a build and check it against the cluster as it is now; reads only."""
    problems: list[Problem] = []
    if not names.is_vm_name(request.name):
        rule = "lower-case letters, digits and inner hyphens, at most 63"
        problems.append(Problem("name", f"{request.name[:80]!r} is not a valid host name: {rule}"))
    profile = session.execute(select(Profile).where(Profile.name == request.profile)).scalar_one_or_none()
    if profile is None:
        problems.append(Problem("profile", f"there is no profile {request.profile[:80]!r}"))
        return PlannedBuild({}, {}, (), tuple(problems))
    plan, secrets = _draft(profile, request, problems)
    candidates = load_candidates(session, config.node.dead_after)
    node = choose_node(candidates, plan, config.node.reserved_memory_mib)
    if node is not None:
        settle_on(node, plan, problems)
    checks = run_checks(session, config, plan, node, candidates, find_volume)
    return PlannedBuild(plan, secrets, checks, tuple(problems))


def run_checks(
    session: Session,
    config: Config,
    plan: Json,
    node: Candidate | None,
    candidates: Sequence[Candidate],
    find_volume: FindVolume | None,
) -> tuple[Check, ...]:
    """Every check of a plan; those that came out well give no hint."""
    checks = check_plan(session, plan, node, candidates, config.node.reserved_memory_mib, find_volume)
    return tuple(replace(check, hint="") if check.ok else check for check in checks)


def _draft(profile: Profile, request: BuildRequest, problems: list[Problem]) -> tuple[Json, Json]:
    """The plan as far as it does not depend on a node."""
    declaration = Declaration.from_dict(profile.script.declaration)
    values, texts, wrong = declarations.type_arguments(declaration, (*profile.arguments, *request.arguments))
    problems.extend(wrong)
    arguments, secrets = declarations.split_secrets(declaration, values)
    template = profile.network_template
    disks = profile.storage_template.disks if profile.storage_template else []
    volumes = planned_disks.plan_volumes(request.name, disks, profile.image, problems)
    plan: Json = {
        "version": PLAN_VERSION,
        "vm": {"name": request.name, "uuid": str(uuid.uuid4()), "id": names.vm_number(request.name)},
        "profile": profile.name,
        "node": "",
        "define": request.define,
        "start": request.start and request.define,
        "script": {
            "name": profile.script.name,
            "source": profile.script.script,
            "sha256": declaration.sha256,
            "declaration": profile.script.declaration,
        },
        "arguments": arguments,
        "argument_texts": {name: text for name, text in texts.items() if name not in secrets},
        "system": {name: getattr(profile.system_template, name) for name in SYSTEM_FIELDS},
        "mac_template": template.mac_template if template else None,
        "networks": [{"vni": net.vni} for net in template.networks] if template else [],
        "image": planned_disks.plan_image(profile.image, problems),
        "volumes": volumes,
        "cdroms": planned_disks.plan_cdroms(
            request.name, profile.image, declaration.answers_mib, volumes[0]["pool"] if volumes else ""
        ),
        "userdata": profile.userdata.userdata if profile.userdata else None,
        "domain": {},
    }
    return plan, secrets


def settle_on(node: Candidate, plan: Json, problems: list[Problem]) -> None:
    """Fill in what the chosen node decides: bridges, addresses, the domain's defaults.

    Safe to repeat, also with another node: addresses depend on the VM only.
    """
    plan["node"] = node.name
    vm, template = plan["vm"], plan["mac_template"]
    for index, network in enumerate(plan["networks"]):
        known: Any = node.networks.get(network["vni"], {})
        network["bridge"] = known.get("bridge") or names.bridge_name(network["vni"])
        network["user"] = bool(known.get("user"))
        try:
            network["mac"] = names.mac_address(template, vm["name"], vm["uuid"], index)
        except ValueError as exc:
            problems.append(Problem(f"networks[{index}].mac", str(exc)))
    system = plan["system"]
    hardware = (plan.get("image") or {}).get("hardware") or {}
    plan["domain"] = {
        **node.capabilities["domain"],
        "architecture": node.architecture,
        "memory_mib": system["vram_mb"],
        "vcpus": system["vcpu_count"],
        "serial": system["serial"],
        "vnc": system["vnc"],
        "vnc_bind": system["vnc_bind"] or "127.0.0.1",
    }
    if hardware.get("firmware"):  # a system starts only by the firmware it was installed for
        plan["domain"]["firmware"] = hardware["firmware"]
