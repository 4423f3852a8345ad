"""Virtual machines that exist: looked at here, changed by their nodes."""

import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from pvcapid.endpoint import endpoint
from pvcapid.fields import Choice, Flag, NoParameters, Text, Whole, documented
from pvcapid.look_up import names_matching
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvcapid.vm_element import VM_STATES, VmElement, vm_element, vm_state
from pvccommon.errors import EnvironmentFault, NotFound, Problem, WrongInput, WrongState
from pvccommon.models import Build, Node, Vm, one_of
from pvccommon.placement import alive_nodes
from pvccommon.queue import call_node

blueprint = Blueprint("vms", __name__)
CHANGES = ("start", "shutdown", "stop", "restart", "disable")
ANSWER_TIMEOUT_S = 60
# The node waits up to three minutes for a guest to power off.
WAIT_TIMEOUT_S = 240
MAX_LINES = 10_000
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class VmFilter(Schema):
    limit = Text(longest=128, metadata=documented("regular expression on the name, or a UUID"))
    node = Text(longest=64, metadata=documented("only VMs on this node"))
    state = Choice(VM_STATES, metadata=documented("only VMs in this state"))
    tag = Text(longest=64, metadata=documented("only VMs with this tag"))
    negate = Flag(load_default=False, metadata=documented("turn the filters round"))


class RemoveParameters(Schema):
    delete_disks = Flag(load_default=False, metadata=documented("delete the VM's volumes, too"))


class StateParameters(Schema):
    state = Choice(CHANGES, required=True)
    force = Flag(load_default=False)
    wait = Flag(load_default=False, metadata=documented("answer when the guest has shut down"))


class ConsoleFilter(Schema):
    lines = Whole(1, MAX_LINES, load_default=1000, metadata=documented("how many of the last lines"))


class ConsoleAnswer(Schema):
    name = fields.String()
    data = fields.String()


@blueprint.get("/vm")
@endpoint(VmFilter, VmElement, many=True)
def list_vms(given: Given) -> Any:
    """List VMs."""
    with reading() as session:
        vms = session.execute(select(Vm).order_by(Vm.name)).scalars().all()
        if "node" in given and session.get(Node, given["node"]) is None:
            raise WrongInput("list VMs", problems=[Problem("node", f"unknown node {given['node']!r}")])
        wanted = _wanted_names(session, given)
        found = [vm for vm in vms if _passes(vm, wanted, given)]
        if not found:
            raise NotFound("list VMs", "none matches" if vms else "there are none yet")
        return _elements(session, found)


@blueprint.get("/vm/<vm>")
@endpoint(NoParameters, VmElement, many=True)
def get_vm(given: Given, vm: str) -> Any:
    """Show a VM, by name or UUID."""
    with reading() as session:
        return _elements(session, [_find(session, vm)])


@blueprint.delete("/vm/<vm>")
@endpoint(RemoveParameters, absent=400)
def remove_vm(given: Given, vm: str) -> str:
    """Stop a VM and forget it, with or without its volumes."""
    found = _locate(vm, f"remove VM {vm}")
    answer = _ask(found, "vm.remove", {"delete_disks": given["delete_disks"]}, WAIT_TIMEOUT_S)
    return str(answer["message"])


@blueprint.post("/vm/<vm>/state")
@endpoint(StateParameters, absent=400)
def set_vm_state(given: Given, vm: str) -> str:
    """Start, stop, shut down, restart or disable a VM."""
    found = _locate(vm, f"{given['state']} VM {vm}")
    seen = vm_state(found)
    if given["state"] in ("shutdown", "restart") and seen != "start":
        raise WrongState(
            f"{given['state']} VM {found.name}", f"it is in state {seen}", f"pvc vm start {found.name}"
        )
    waits = given["wait"] or given["state"] == "restart"
    answer = _ask(found, "vm.state", dict(given), WAIT_TIMEOUT_S if waits else ANSWER_TIMEOUT_S)
    return str(answer["message"])


@blueprint.get("/vm/<vm>/console")
@endpoint(ConsoleFilter, ConsoleAnswer)
def get_vm_console(given: Given, vm: str) -> Any:
    """Show the end of a VM's serial console log."""
    what = f"read the console of VM {vm}"
    found = _locate(vm, what)
    try:
        answer = _ask(found, "vm.console", {"lines": given["lines"]}, ANSWER_TIMEOUT_S)
    except EnvironmentFault as exc:
        # As a 5xx existing clients would not show it.
        raise WrongState(what, exc.message, exc.hint) from exc
    return {"name": found.name, "data": answer["data"]}


def _find(session: Session, vm: str) -> Vm:
    by_uuid = Vm.uuid == str(uuid.UUID(vm)) if UUID.fullmatch(vm) else False
    row: Vm | None = session.execute(
        select(Vm).where(or_(Vm.name == vm, by_uuid)).limit(1)
    ).scalar_one_or_none()
    if row is None:
        raise NotFound(f"find VM {vm}", "there is no such VM", "see the list of VMs")
    return row


def _locate(vm: str, what: str) -> Vm:
    """The row of a VM whose node can be asked. Raises NotFound, WrongState."""
    with reading() as session:
        row = _find(session, vm)
        if row.node not in alive_nodes(session, services().config.node.dead_after):
            raise WrongState(
                what, f"its node {row.node} does not report", f"is pvc-node running on {row.node}?"
            )
        return row


def _ask(vm: Vm, verb: str, arguments: Mapping[str, Any], timeout_s: int) -> Any:
    return call_node(services().queue, vm.node, verb, {"vm": vm.name, **arguments}, timeout_s)


def _wanted_names(session: Session, given: Given) -> set[str] | None:
    limit = given.get("limit")
    if not limit or UUID.fullmatch(limit):
        return None
    return names_matching(session, Vm.name, limit)


def _passes(vm: Vm, names: set[str] | None, given: Given) -> bool:
    limit = given.get("limit", "")
    outcomes = [
        vm.name in names if names is not None else not limit or vm.uuid == limit.lower(),
        "node" not in given or vm.node == given["node"],
        "state" not in given or vm_state(vm) == given["state"],
        "tag" not in given or given["tag"] in [tag["name"] for tag in vm.tags],
    ]
    filtered = limit or {"node", "state", "tag"} & set(given)
    return not all(outcomes) if given["negate"] and filtered else all(outcomes)


def _elements(session: Session, vms: Iterable[Vm]) -> list[dict[str, Any]]:
    builds = [vm.build for vm in vms if vm.build]
    plans = session.execute(select(Build.id, Build.plan["networks"]).where(one_of(Build.id, builds)))
    networks = {build: found or [] for build, found in plans}
    return [vm_element(vm, networks.get(vm.build or "", [])) for vm in vms]
