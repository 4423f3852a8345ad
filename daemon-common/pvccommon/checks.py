"""The read-only checks of a plan. Each gives one or more outcomes; all are made, none stops the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon import names
from pvccommon.errors import PvcError
from pvccommon.kept_volumes import discard_command, find_left_volume
from pvccommon.models import ACTIVE_STATES, Build, Json, Resource, ResourceState, Vm, one_of
from pvccommon.placement import Candidate, allowed_nodes

MIB = 1024**2

# (node, pool, volume) -> {"size_bytes": …} or None; raises when it cannot be found out.
FindVolume = Callable[[str, str, str], Json | None]
NAME_CHECK = "name"  # fails when the name is taken


@dataclass(frozen=True)
class Check:
    """What was looked at (a path such as `pool.vms`), how it came out, and what to do if badly."""

    name: str
    ok: bool
    message: str
    hint: str = ""


def check_plan(
    session: Session,
    plan: Json,
    node: Candidate | None,
    candidates: Sequence[Candidate],
    reserved_mib: int,
    find_volume: FindVolume | None,
) -> Iterator[Check]:
    """Every check, in the order a user would ask."""
    yield check_name(session, plan)
    yield check_node(plan, node, candidates)
    yield check_boot(plan)
    if node is None:
        return
    yield check_memory(plan, node, reserved_mib)
    yield check_vcpus(plan, node)
    yield from check_firmware(plan, node)
    yield from check_networks(plan, node)
    yield from check_volumes(session, plan, node, find_volume)
    yield from check_space(plan, node)
    yield from check_filesystems(plan, node)


def check_name(session: Session, plan: Json) -> Check:
    name = plan["vm"]["name"]
    if session.get(Vm, name):
        return Check(
            NAME_CHECK, False, f"VM {name} exists already", f"choose another name, or: pvc vm remove {name}"
        )
    build = session.execute(
        select(Build.id).where(Build.vm == name, one_of(Build.state, ACTIVE_STATES))
    ).scalar()
    if build:
        return Check(
            NAME_CHECK, False, f"build {build} is making VM {name} already", f"pvc cluster task {build}"
        )
    return Check(NAME_CHECK, True, f"{name} is free")


def check_node(plan: Json, node: Candidate | None, candidates: Sequence[Candidate]) -> Check:
    if node is not None:
        return Check(
            "node", True, f"{node.name} is chosen of {len(allowed_nodes(candidates, plan))} possible"
        )
    dead = [candidate.name for candidate in candidates if not candidate.alive]
    limit = plan["system"]["node_limit"]
    image = plan.get("image") or {}
    if image.get("node"):
        why = f"image {image['name']} is on node {image['node']} only, which is not running or not allowed"
        return Check("node", False, why, "start pvc-node there, or import the image into a shared pool")
    if limit and any(candidate.alive for candidate in candidates):
        return Check(
            "node", False, f"none of the nodes {limit} is running", "change node_limit of the system template"
        )
    reason = f"no node is running (not heard of: {', '.join(dead)})" if dead else "no node has ever reported"
    return Check("node", False, reason, "start pvc-node on a hypervisor")


def check_boot(plan: Json) -> Check:
    disks = [volume["disk_id"] for volume in plan["volumes"]]
    if len(set(disks)) != len(disks):
        return Check("disks", False, "a disk id is used twice")
    taken = sorted({cdrom["disk_id"] for cdrom in plan.get("cdroms", ())}.intersection(disks))
    if taken:
        return Check("disks", False, f"{' and '.join(taken)} is needed for a CD-ROM", "rename the disk")
    mounted = [volume["mountpoint"] for volume in plan["volumes"] if volume["mountpoint"]]
    if len(set(mounted)) != len(mounted):
        return Check("disks", False, "a mount point is used twice")
    return Check("disks", True, f"{len(disks)} disks")


def check_memory(plan: Json, node: Candidate, reserved_mib: int) -> Check:
    need, free = plan["system"]["vram_mb"], max(0, node.memory_free_mib - reserved_mib)
    message = f"needs {need} MiB, node {node.name} has {free} MiB free ({reserved_mib} MiB kept for itself)"
    return Check("memory", need <= free, message, "use a smaller system template, or stop VMs")


def check_vcpus(plan: Json, node: Candidate) -> Check:
    need, has = plan["system"]["vcpu_count"], int(node.capabilities.get("vcpus", 0))
    return Check("vcpus", need <= max(has, 1), f"needs {need}, node {node.name} has {has}", "use fewer vCPUs")


def check_firmware(plan: Json, node: Candidate) -> Iterator[Check]:
    """Of an image that asks for one."""
    wanted = ((plan.get("image") or {}).get("hardware") or {}).get("firmware")
    known = node.capabilities.get("firmware")
    if wanted and known is not None:
        message = f"the image starts by {wanted}, node {node.name} has {' and '.join(known)}"
        yield Check("firmware", wanted in known, message, "install the package ovmf on the node")


def check_networks(plan: Json, node: Candidate) -> Iterator[Check]:
    for network in plan["networks"]:
        vni = network["vni"]
        known = node.networks.get(vni)
        path = f"network.{vni}"
        if known is None:
            has = ", ".join(node.networks) or "none"
            yield Check(
                path,
                False,
                f"node {node.name} has no network {vni} (it has: {has})",
                "add it under `networks`",
            )
        elif not known.get("present"):
            yield Check(
                path,
                False,
                f"bridge {known.get('bridge')} does not exist on node {node.name}",
                "create the bridge",
            )
        else:
            yield Check(path, True, f"on {'user-mode network' if known.get('user') else known.get('bridge')}")


def check_volumes(
    session: Session, plan: Json, node: Candidate, find_volume: FindVolume | None
) -> Iterator[Check]:
    """Pools, sources and the CD-ROMs of images exist; targets do not, nor is anything of an earlier build in
    their way."""
    for volume in (*plan["volumes"], *plan.get("cdroms", ())):
        pool, name, source = volume["pool"], volume["volume"], volume.get("source_volume")
        path = f"volume.{name}"
        if pool not in node.pools:
            has = ", ".join(node.pools) or "none"
            yield Check(
                path, False, f"node {node.name} has no pool {pool} (it has: {has})", "see: pvc node info"
            )
            continue
        shared = bool(node.pools[pool].get("shared"))
        left = find_left_volume(session, f"{pool}/{name}", None if shared else node.name)
        if left is not None:
            yield _check_left(path, left)
            continue
        if find_volume is None:
            continue
        try:
            there = find_volume(node.name, pool, name)
            if volume.get("temporary") is False:
                yield Check(path, there is not None, f"CD-ROM {pool}/{name}", "import the image again")
                continue
            if there:
                yield Check(
                    path,
                    False,
                    f"volume {pool}/{name} exists already",
                    "remove it, or choose another VM name",
                )
                continue
            found = find_volume(node.name, pool, source) if source else None
        except PvcError as exc:
            yield Check(path, False, f"could not look into pool {pool}: {exc.message}", exc.hint)
            continue
        if source and found is None:
            yield Check(
                path, False, f"source volume {pool}/{source} does not exist", "change the storage template"
            )
        elif source and found:
            volume["size_bytes"] = volume["size_bytes"] or found["size_bytes"]
            yield Check(path, True, f"will be a clone of {pool}/{source}")


def _check_left(path: str, left: Resource) -> Check:
    """A volume must go before a build makes one of its name: who removes it could not tell them apart."""
    if left.state == ResourceState.HELD:
        why = f"volume {left.name} is kept of build {left.build}, which failed"
        return Check(path, False, why, discard_command(left.build))
    why = f"volume {left.name} of build {left.build} is still to be removed by node {left.node}"
    return Check(path, False, why, "try again when it has gone; see: pvc node list")


def own_cdroms(plan: Json) -> list[Json]:
    """The CD-ROMs a build makes itself, which plans of earlier versions do not have."""
    return [cdrom for cdrom in plan.get("cdroms", ()) if cdrom["temporary"]]


def check_space(plan: Json, node: Candidate) -> Iterator[Check]:
    pools = dict.fromkeys(volume["pool"] for volume in plan["volumes"] if volume["pool"] in node.pools)
    for pool in pools:
        state = node.pools[pool]
        if state.get("error"):
            yield Check(
                f"pool.{pool}",
                False,
                f"does not work on node {node.name}: {state['error']}",
                "see pvc node info",
            )
            continue
        need = sum(
            v["size_bytes"] or 0
            for v in (*plan["volumes"], *own_cdroms(plan))
            if v["pool"] == pool and not v.get("source_volume")
        )
        free = max(0, state["free_bytes"] - node.pending.get(pool, 0))
        message = f"needs {need // MIB} MiB, has {free // MIB} MiB free"
        yield Check(
            f"pool.{pool}", need <= free, message, "free space in the pool, or make the disks smaller"
        )


def check_filesystems(plan: Json, node: Candidate) -> Iterator[Check]:
    wanted = dict.fromkeys(
        v["filesystem"] for v in plan["volumes"] if v["filesystem"] and not v["source_volume"]
    )
    for filesystem in wanted:
        ok = filesystem in names.FILESYSTEMS and filesystem in node.filesystems
        program = "mkswap" if filesystem == "swap" else f"mkfs.{filesystem}"
        message = f"{program} is installed" if ok else f"{program} is not installed on node {node.name}"
        yield Check(f"filesystem.{filesystem}", ok, message, "" if ok else "install it on the node")
