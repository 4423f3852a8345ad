"""The broker: the few things a script may ask of the world outside its sandbox.

Each verb is checked against the build's frozen plan: a script can name only volumes of its own VM in the
pools of its plan. Every verb that makes something writes the journal first.
"""

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pvccommon.errors import Busy, Exists, Forbidden, Problem, WrongInput, WrongState
from pvccommon.kept_volumes import VOLUME
from pvccommon.models import Json
from pvccommon.storage.partition import PartitionDevice, add_partition
from pvccommon.storage.pool import BlockDevice, StoragePool
from pvcnoded.build_log import BuildLog
from pvcnoded.domain_policy import check_domain
from pvcnoded.journal import Journal
from pvcnoded.sandbox.sandbox import Sandbox

MAX_PARTITIONS = 16
POWEROFF, EJECT = "poweroff", "eject"
DEFAULT_FIRST_BOOT_S, MAX_FIRST_BOOT_S = 3600, 24 * 3600


@dataclass(frozen=True)
class FirstBoot:
    """What happens to a domain that has CD-ROMs.

    `poweroff`: the build starts it, waits until the guest powers itself off (an unattended installation),
    takes the CD-ROMs away and only then starts the VM. `eject`: the VM starts with them, and they go when it
    first stops.
    """

    until: str = "eject"
    timeout_s: int = 0


@dataclass
class MappedVolume:
    """A volume that is a block device now; `undo` unmaps it."""

    device: BlockDevice
    undo: ExitStack
    partitions: dict[int, PartitionDevice] = field(default_factory=dict)


class Broker:
    """Answers the requests of one build."""

    def __init__(
        self, plan: Json, pools: Mapping[str, StoragePool], journal: Journal, sandbox: Sandbox, log: BuildLog
    ) -> None:
        own = (*plan["volumes"], *(cdrom for cdrom in plan.get("cdroms", ()) if cdrom["temporary"]))
        self._plan = plan
        self._volumes: dict[tuple[str, str], Json] = {(v["pool"], v["volume"]): v for v in own}
        # Scripts of PVC 1.0 copy an OVA's disks themselves; they may read, and nothing else.
        self._sources: dict[tuple[str, str], Json] = {
            (v["pool"], v["source_volume"]): {"pool": v["pool"], "volume": v["source_volume"]}
            for v in plan["volumes"]
            if v.get("source_snapshot")
        }
        self._pools = pools
        self._journal = journal
        self._sandbox = sandbox
        self._log = log
        self._mapped: dict[tuple[str, str], MappedVolume] = {}
        self._made: set[tuple[str, str]] = set()
        self.first_boot = FirstBoot()
        self.changed_domain: Any = None  # a document that takes the place of create()'s, checked
        self._verbs: Mapping[str, Callable[[Json], Json]] = {
            "volume.create": self.create,
            "volume.clone": self.clone,
            "volume.map": self.map,
            "volume.unmap": self.unmap,
            "volume.partitions": self.partitions,
            "volume.mount": self.mount,
            "volume.unmount": self.unmount,
            "device.link": self.link,
            "progress": self.progress,
            "domain.first_boot": self.set_first_boot,
            "domain.change": self.change_domain,
        }

    def answer(self, verb: str, arguments: Json) -> Json:
        """Do what the script asks, or raise a PvcError that the script gets to see."""
        action = self._verbs.get(verb)
        if action is None:
            raise Forbidden(f"answer {verb[:40]!r}", f"the broker offers only: {', '.join(self._verbs)}")
        return action(arguments)

    def has_made(self, planned: Json) -> bool:
        """Whether the script has had this volume made."""
        return _key(planned) in self._made

    def close(self) -> None:
        """Unmap what the script has left mapped. Call after the sandbox has ended."""
        with ExitStack() as stack:
            for mapped in self._mapped.values():
                stack.enter_context(mapped.undo)
            self._mapped = {}

    # ---- verbs

    def create(self, arguments: Json) -> Json:
        planned = self._planned(arguments, "create")
        if planned["size_bytes"] is None:
            raise WrongInput(
                _what("create", planned), "the plan gives it no size; it is a clone", "ask for volume.clone"
            )
        self._make(planned, lambda pool: pool.create_volume(planned["volume"], planned["size_bytes"]))
        return {"size_bytes": planned["size_bytes"]}

    def clone(self, arguments: Json) -> Json:
        planned = self._planned(arguments, "clone")
        source, snapshot = planned.get("source_volume"), planned.get("source_snapshot")
        if not source:
            raise WrongInput(
                _what("clone", planned), "the plan names no source for it", "ask for volume.create"
            )
        name, size = planned["volume"], planned["size_bytes"]
        if snapshot:
            self._make(planned, lambda pool: pool.clone_snapshot(source, snapshot, name, size_bytes=size))
        else:
            self._make(planned, lambda pool: pool.clone_volume(source, name))
        return {"size_bytes": self._pools[planned["pool"]].stat_volume(planned["volume"]).size_bytes}

    def map(self, arguments: Json) -> Json:
        planned = self._source(arguments) or self._planned(arguments, "map")
        key = _key(planned)
        read_only = key in self._sources
        if key not in self._made and not read_only:
            raise WrongState(
                _what("map", planned), "this build has not made it yet", "create or clone it first"
            )
        if key not in self._mapped:
            with ExitStack() as stack:
                pool = self._pools[planned["pool"]]
                device = stack.enter_context(pool.open_device(planned["volume"], read_only=read_only))
                self._sandbox.add_device(device.name, device.major, device.minor, [f"rbd/{'/'.join(key)}"])
                self._mapped[key] = MappedVolume(device, stack.pop_all())
        return {"device": f"/dev/rbd/{'/'.join(key)}", "node": f"/dev/{self._mapped[key].device.name}"}

    def unmap(self, arguments: Json) -> Json:
        planned = self._source(arguments) or self._planned(arguments, "unmap")
        mapped = self._mapped.get(_key(planned))
        if mapped is None:
            raise WrongState(_what("unmap", planned), "it is not mapped")
        _refuse_if_held(mapped.device.path, _what("unmap", planned))
        del self._mapped[_key(planned)]
        for name in (*(p.name for p in mapped.partitions.values()), mapped.device.name):
            self._sandbox.remove_device(name)
        mapped.undo.close()
        return {}

    def partitions(self, arguments: Json) -> Json:
        planned = self._planned(arguments, "partition")
        mapped = self._find_mapped(planned, "partition")
        wanted = arguments.get("partitions")
        if not isinstance(wanted, list) or not 1 <= len(wanted) <= MAX_PARTITIONS:
            raise WrongInput(
                _what("partition", planned), f"partitions must be a list of 1 to {MAX_PARTITIONS}"
            )
        for item in wanted:
            number, start, size = (_integer(item, name) for name in ("number", "start_bytes", "size_bytes"))
            partition = add_partition(mapped.device.fd, number, start, size)
            mapped.partitions[number] = partition
            self._sandbox.add_device(partition.name, partition.major, partition.minor)
        return {"nodes": [f"/dev/{mapped.partitions[item['number']].name}" for item in wanted]}

    def mount(self, arguments: Json) -> Json:
        planned = self._planned(arguments, "mount")
        device = self._device(planned, arguments.get("partition"), "mount")
        path, filesystem = _text(arguments, "path"), _text(arguments, "filesystem")
        self._sandbox.mount(device.path, path, filesystem, read_only=arguments.get("read_only") is True)
        return {}

    def unmount(self, arguments: Json) -> Json:
        self._sandbox.unmount(_text(arguments, "path"))
        return {}

    def link(self, arguments: Json) -> Json:
        planned = self._planned(arguments, "link")
        device = self._device(planned, arguments.get("partition"), "link")
        uuid = _text(arguments, "uuid")
        if not uuid.replace("-", "").isalnum() or len(uuid) > 40:
            raise WrongInput(_what("link", planned), f"{uuid[:40]!r} is not the id of a file system")
        self._sandbox.add_device(device.name, device.major, device.minor, [f"disk/by-uuid/{uuid}"])
        return {}

    def progress(self, arguments: Json) -> Json:
        percent = arguments.get("percent")
        number = isinstance(percent, int | float) and 0 <= percent <= 100
        self._log.progress(_text(arguments, "message")[:200], float(percent or 0) if number else None)
        return {}

    def set_first_boot(self, arguments: Json) -> Json:
        """How the domain's first start ends, when it has CD-ROMs; see `FirstBoot`."""
        what = "choose how the first boot ends"
        until, limit = arguments.get("until"), arguments.get("timeout_s")
        problems = []
        if until not in (POWEROFF, EJECT):
            problems.append(Problem("until", f"must be {POWEROFF!r} or {EJECT!r}"))
        if limit is not None and (type(limit) is not int or not 1 <= limit <= MAX_FIRST_BOOT_S):
            problems.append(Problem("timeout_s", f"must be a whole number from 1 to {MAX_FIRST_BOOT_S}"))
        if problems:
            raise WrongInput(what, problems=problems)
        if until == POWEROFF and not self._plan["define"]:
            raise WrongState(what, "the VM is not to be defined, so it cannot install itself")
        if until == POWEROFF and not self._plan.get("cdroms"):
            raise WrongState(what, "the VM has no CD-ROM", "give the profile an image of kind iso")
        self.first_boot = FirstBoot(str(until), limit or DEFAULT_FIRST_BOOT_S)
        return {}

    def change_domain(self, arguments: Json) -> Json:
        """Take another domain document than create() gave, for what a script learns from the disks."""
        xml = arguments.get("xml")
        if not isinstance(xml, str):
            raise WrongInput("change the domain", problems=[Problem("xml", "must be a text")])
        self.changed_domain = check_domain(xml, self._plan)
        return {}

    # ---- parts

    def _planned(self, arguments: Json, verb: str) -> Json:
        pool, volume = _text(arguments, "pool"), _text(arguments, "volume")
        planned = self._volumes.get((pool, volume))
        if planned is None:
            own = ", ".join("/".join(key) for key in self._volumes) or "none"
            raise Forbidden(
                f"{verb} volume {pool[:64]}/{volume[:128]}", f"it is not one of this build's volumes ({own})"
            )
        return planned

    def _source(self, arguments: Json) -> Json | None:
        return self._sources.get((_text(arguments, "pool"), _text(arguments, "volume")))

    def _make(self, planned: Json, make: Callable[[StoragePool], Any]) -> None:
        """Make a volume that is not there yet, journal first.

        The look before the intent matters: undo deletes what the journal names, so it must never name a
        volume that was somebody else's before. Within a VM's name, the build has no rival.
        """
        pool = self._pools[planned["pool"]]
        name = planned["volume"]
        if pool.volume_or_none(name) is not None:
            raise Exists(_what("create", planned), "it exists", "remove it, or choose another VM name")
        with self._journal.making(VOLUME, f"{pool.name}/{name}"):
            make(pool)
        self._made.add(_key(planned))
        self._log.info(f"made volume {pool.name}/{name}")

    def _find_mapped(self, planned: Json, verb: str) -> MappedVolume:
        mapped = self._mapped.get(_key(planned))
        if mapped is None:
            raise WrongState(_what(verb, planned), "it is not mapped", "ask for volume.map first")
        return mapped

    def _device(self, planned: Json, partition: object, verb: str) -> BlockDevice | PartitionDevice:
        mapped = self._find_mapped(planned, verb)
        if partition is None:
            return mapped.device
        found = mapped.partitions.get(partition) if isinstance(partition, int) else None
        if found is None:
            raise WrongInput(
                _what(verb, planned),
                f"there is no partition {str(partition)[:20]}",
                "ask for volume.partitions first",
            )
        return found


def _refuse_if_held(path: str, what: str) -> None:
    """Raise Busy while the device or one of its partitions is mounted: an exclusive open(2) fails then."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        raise Busy(what, "it is still mounted", "ask for volume.unmount first") from exc


def _key(planned: Json) -> tuple[str, str]:
    return planned["pool"], planned["volume"]


def _what(verb: str, planned: Json) -> str:
    return f"{verb} volume {planned['pool']}/{planned['volume']}"


def _text(arguments: Json, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or "\0" in value or len(value) > 4096:
        raise WrongInput("read a request of the script", problems=[Problem(name, "must be a text")])
    return value


def _integer(item: object, name: str) -> int:
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongInput(
            "read a request of the script", problems=[Problem(f"partitions.{name}", "must be a whole number")]
        )
    return value
