"""Orphans: what looks like ours on this node, and no row knows.

The journal sees to whatever a build makes; what is found here came about in other ways: rows were lost or
restored from a copy, VMs were removed without their disks, devices were held by strangers. It is listed for
an operator, never removed by itself.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon.errors import EnvironmentFault, NotFound, PvcError
from pvccommon.kept_volumes import VOLUME
from pvccommon.models import (
    ACTIVE_STATES,
    PENDING,
    Build,
    BuildState,
    Json,
    Resource,
    ResourceState,
    StorageTemplateDisk,
    Vm,
    one_of,
)
from pvccommon.names import is_vm_volume
from pvccommon.storage.pool import StoragePool, Volume
from pvcnoded.hypervisor import Hypervisor, SeenDomain
from pvcnoded.undo import DOMAIN

# A volume so young may be about to get its owner: an operator has uploaded or cloned it, and the template or
# VM comes next. Builds do not need it, they write their journal first.
MIN_AGE_S = 3600


@dataclass(frozen=True)
class Orphan:
    """`node` is None for what every node sees. `source`: what a domain that uses the volume would name."""

    kind: str  # volume, domain, snapshot, mapping
    node: str | None
    name: str
    why: str
    pool: str | None = None
    inner: str = ""  # the pool's or libvirt's own name, with which it is removed
    size_bytes: int | None = None
    used_bytes: int | None = None
    source: str | None = None

    @property
    def id(self) -> str:
        """The same as long as it is the same thing."""
        return f"{self.kind}:{self.node or ''}:{self.pool or ''}:{self.inner}"

    def to_json(self) -> Json:
        return {"id": self.id, **asdict(self)}


@dataclass(frozen=True)
class Owners:
    """What the rows name: volumes as "pool/volume", domains by UUID."""

    volumes: Collection[str]
    domains: Collection[str]


def ownerless_volumes(volumes: Iterable[Volume], owners: Owners, now: float) -> list[Volume]:
    """Volumes with the names of VMs' disks that no row names and that are not young."""
    return [
        volume
        for volume in volumes
        if is_vm_volume(volume.name)
        and f"{volume.pool}/{volume.name}" not in owners.volumes
        and now - volume.changed > MIN_AGE_S
    ]


def ownerless_domains(domains: Iterable[SeenDomain], owners: Owners, cluster: str) -> list[SeenDomain]:
    """Domains with the mark of this cluster whose VM is gone."""
    return [
        domain
        for domain in domains
        if domain.mark is not None and domain.mark.cluster == cluster and domain.uuid not in owners.domains
    ]


def load_owners(session: Session) -> Owners:
    """Whatever names a volume or domain: VMs, journals, builds that have not ended, templates.

    Nodes are not told apart: a name that is known anywhere is left alone everywhere.
    """
    vms = session.execute(select(Vm.uuid, Vm.volumes, Vm.media)).all()
    plans = session.execute(select(Build.plan).where(one_of(Build.state, ACTIVE_STATES))).scalars().all()
    journal = session.execute(
        select(Resource.kind, Resource.name).where(
            one_of(Resource.state, (*PENDING, ResourceState.HELD)), one_of(Resource.kind, (VOLUME, DOMAIN))
        )
    ).all()
    # A build can make volumes without a VM (`define_vm=false`); they are wanted.
    bare = session.execute(
        select(Resource.name)
        .join(Build, Build.id == Resource.build)
        .where(
            Resource.kind == VOLUME,
            Resource.state == ResourceState.KEPT.value,
            Build.state == BuildState.SUCCEEDED.value,
            Build.plan["define"].as_boolean().is_(False),
        )
    ).scalars()
    disks = session.execute(select(StorageTemplateDisk.pool, StorageTemplateDisk.source_volume)).all()
    planned = [volume for plan in plans for volume in (*plan["volumes"], *plan.get("cdroms", ()))]
    return Owners(
        volumes={
            *(
                f"{volume['pool']}/{volume['volume']}"
                for _, disks, media in vms
                for volume in (*disks, *media)
            ),
            *(f"{volume['pool']}/{volume['volume']}" for volume in planned),
            *(f"{volume['pool']}/{volume.get('source_volume')}" for volume in planned),
            *(name for kind, name in journal if kind == VOLUME),
            *bare,
            *(f"{pool}/{source}" for pool, source in disks),
        },
        domains={
            *(uuid for uuid, *_ in vms),
            *(plan["vm"]["uuid"] for plan in plans),
            *(name.rpartition("/")[2] for kind, name in journal if kind == DOMAIN),
        },
    )


@dataclass(frozen=True)
class OrphanFinder:
    """Looks for orphans on one node."""

    node: str
    cluster: str
    pools: Mapping[str, StoragePool]
    hypervisor: Hypervisor
    owners: Callable[[], Owners]

    def find(self, pools: Collection[str]) -> Iterator[Orphan]:
        """Those in the named pools, and those that are this node's own.

        Raises when libvirt or a pool does not answer: a part would look like the whole.
        """
        domains = self.hypervisor.look_at_domains()
        named = self.named_sources(domains)
        # After the things themselves: what has come about meanwhile has its row by now.
        seen = [(pool, pool.list_volumes(), pool.leftovers()) for pool in self._chosen(pools)]
        owners = self.owners()
        for domain in ownerless_domains(domains, owners, self.cluster):
            why = f"build {domain.mark.build if domain.mark else ''} made it for a VM that is gone"
            yield Orphan("domain", self.node, domain.name, why, inner=f"{domain.name}/{domain.uuid}")
        for pool, volumes, leftovers in seen:
            for volume in ownerless_volumes(volumes, owners, time.time()):
                yield from self._if_unused(pool, volume, named)
            for left in leftovers:
                yield self._orphan(left.kind, pool, left.name, left.why, size_bytes=left.size_bytes)
        for pool in self.pools.values():
            for left in pool.left_mappings():
                yield Orphan("mapping", self.node, left.name, left.why, pool.name, left.name)

    def remove(self, orphan: Orphan) -> None:
        """Remove one that `find` has given a moment ago. Raises what stands against it."""
        if orphan.kind == "domain":
            name, _, uuid = orphan.inner.partition("/")
            self.hypervisor.undefine(name, uuid=uuid)
            return
        pool = self.pools[orphan.pool or ""]
        if orphan.source is not None:
            pool.delete_volume(orphan.inner)
        else:
            pool.remove_leftover(orphan.kind, orphan.inner)

    @staticmethod
    def named_sources(domains: Iterable[SeenDomain]) -> set[str]:
        return {source for domain in domains for source in domain.sources}

    def _chosen(self, names: Collection[str]) -> list[StoragePool]:
        missing = sorted(set(names) - self.pools.keys())
        if missing:
            raise NotFound("list orphans", f"node {self.node} has no pool {', '.join(missing)}")
        return [self.pools[name] for name in names]

    def _if_unused(self, pool: StoragePool, volume: Volume, named: set[str]) -> Iterator[Orphan]:
        """The orphan, unless a domain names the volume, it is open, or somebody has made snapshots of it."""
        try:
            if pool.is_open(volume.name) or pool.list_snapshots(volume.name):
                return
            source = pool.disk_source(volume.name)
        except NotFound:
            return
        except PvcError as exc:
            if isinstance(exc, EnvironmentFault):
                raise
            return  # it is busy, so somebody has it
        if named & {source.path, *(below.path for below in source.backing)}:
            return
        sizes = {"size_bytes": volume.size_bytes, "used_bytes": volume.used_bytes}
        yield self._orphan(
            "volume", pool, volume.name, "no VM, build or template names it", source=source.path, **sizes
        )

    def _orphan(
        self,
        kind: str,
        pool: StoragePool,
        name: str,
        why: str,
        *,
        size_bytes: int | None = None,
        used_bytes: int | None = None,
        source: str | None = None,
    ) -> Orphan:
        node = None if pool.shared else self.node
        full = f"{pool.name}/{name}"
        return Orphan(kind, node, full, why, pool.name, name, size_bytes, used_bytes, source)
