"""The forward way of one build, step by step (docs/architecture.md, "the walk of one build").

Nothing is undone here: `build.py` does that when a step raises.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from pvccommon import builds, steps
from pvccommon.checks import own_cdroms
from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.errors import Internal, Problem, PvcError, ScriptFailed, WrongInput
from pvccommon.kept_volumes import VOLUME
from pvccommon.models import Json
from pvccommon.storage.pool import StoragePool
from pvcnoded.broker import POWEROFF, Broker, FirstBoot
from pvcnoded.build_log import BuildLog
from pvcnoded.context import script_context
from pvcnoded.conversation import Conversation
from pvcnoded.domain_mark import DomainMark, mark_domain
from pvcnoded.domain_policy import check_domain, disk_source
from pvcnoded.domain_xml import FindSource, resolve_domain, source_to_come, sources_of
from pvcnoded.guest_install import install_by_guest
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.journal import Journal
from pvcnoded.sandbox.sandbox import Sandbox, SandboxSpec, open_sandbox
from pvcnoded.sandbox.userns import range_start, uid_slot
from pvcnoded.sdk import sdk_zip
from pvcnoded.undo import DOMAIN, VM, guard_pools, patiently
from pvcnoded.vm_record import media_of, update_vm, write_vm

LOAD_TIMEOUT_S = 60
# One for the whole host, so that two daemons on it never give the same user ids to two sandboxes.
SLOTS = "/run/pvc/slots"
MIB = 1024**2
LAST_CLEANUP_S = 30


@dataclass
class Pipeline:
    """One build under way. `close` frees whatever this process holds (sandbox, devices)."""

    config: Config
    database: Database
    pools: Mapping[str, StoragePool]
    hypervisor: Hypervisor
    journal: Journal
    log: BuildLog
    plan: Json
    secrets: Json
    owner: str  # who holds the build's lease: this process
    _conversation: Conversation | None = None
    _broker: Broker | None = None
    _domain: Any = None  # the checked document create() returned
    _stack: ExitStack = field(default_factory=ExitStack)

    def run(self) -> None:
        """Every step in order; raises the first error."""
        self.collect()
        self.verify()
        self.load_script()
        self.run_stage("setup")
        if self.plan["define"]:
            self.define_domain(self.run_stage("create"))
        self.run_stage("prepare")
        self.run_stage("install")
        self.run_stage("cleanup")
        self.close()
        self.finish_domain()

    def collect(self) -> None:
        vm, script = self.plan["vm"], self.plan["script"]
        self._enter(steps.COLLECT, "collect", f"reading the plan of {vm['name']}")
        self.log.info(f"build {self.journal.build_id}: VM {vm['name']} from profile {self.plan['profile']}")
        self.log.info(f"node {self.plan['node']}, script {script['name']}, sha256 {script['sha256'][:16]}…")

    def verify(self) -> None:
        """The checks that only this node can make, and those whose outcome may have changed."""
        self._enter(steps.VERIFY, "verify", "checking pools and volumes")
        pools = {volume["pool"] for volume in (*self.plan["volumes"], *self.plan.get("cdroms", ()))}
        for error in guard_pools(self.journal, self.pools, pools).values():
            raise error
        problems = [problem for volume in self._own_volumes for problem in self._volume_problems(volume)]
        problems.extend(self._space_problems())
        if problems:
            raise WrongInput(f"build VM {self.plan['vm']['name']}", problems=problems)
        if self.plan["define"]:
            self.hypervisor.require_free(self.plan["vm"]["name"])

    def load_script(self) -> None:
        """Open the sandbox and have the script imported in it."""
        self._enter(steps.LOAD, "load", "opening the sandbox")
        sandbox = self._stack.enter_context(self._open_sandbox())
        broker = Broker(self.plan, self.pools, self.journal, sandbox, self.log)
        self._broker = broker
        self._stack.callback(broker.close)
        conversation = Conversation(sandbox.channel, sandbox.output, self.log, broker.answer)
        self._stack.callback(_end_sandbox, sandbox, conversation)
        message = {
            "type": "load",
            "script": self.plan["script"]["source"],
            "context": script_context(self.plan, self.secrets),
        }
        conversation.call(message, self._what("load"), LOAD_TIMEOUT_S)
        self._conversation = conversation

    def run_stage(self, stage: str) -> Any:
        """One of the script's five stages, within its time limit; returns what the runner answered."""
        self._enter(steps.STAGE_STEPS[stage], stage, f"running {stage}")
        if self._conversation is None:
            raise Internal(self._what(stage), "the script is not loaded")
        timeout_s = getattr(self.config.builds.stage_timeout_s, stage)
        return self._conversation.call({"type": "stage", "stage": stage}, self._what(stage), timeout_s)

    def define_domain(self, result: Any) -> None:
        """Check what create() returned and define it: libvirt must refuse before the long work, not after."""
        xml = result.get("domain_xml") if isinstance(result, dict) else None
        if not isinstance(xml, str):
            raise ScriptFailed(self._what("create"), "create() did not return a text")
        self._domain = check_domain(xml, self.plan)
        name, uuid = self.plan["vm"]["name"], self.plan["vm"]["uuid"]
        definition = self._resolve(source_to_come)
        # Looked at once more: the journal's next line must not name a domain that was there before.
        self.hypervisor.require_free(name)
        # The names in the journal are such that undoing can only meet what this build has made.
        with self.journal.making(VM, f"{name}/{self.journal.build_id}"):
            write_vm(self.database, self.journal.build_id, self.plan, definition)
        with self.journal.making(DOMAIN, f"{name}/{uuid}"):
            self.hypervisor.define(name, definition, autostart=self.plan["system"]["node_autostart"])
        self.log.info(f"defined domain {name}")

    def finish_domain(self) -> None:
        """Put the volumes, which exist now, into the definition, and start the domain when wanted."""
        media = self._media()
        self._drop_answers(keep=media)
        if self._domain is None:
            return
        if self._broker is not None and self._broker.changed_domain is not None:
            self._domain = self._broker.changed_domain
        name = self.plan["vm"]["name"]
        starting = self.plan["start"]
        self._enter(steps.BOOT, "start", f"starting {name}" if starting else f"defining {name}")
        self._require_volumes()
        if self._first_boot.until == POWEROFF:
            self._install_by_guest(media)
            self._drop_answers()
            media = []
        self.hypervisor.redefine(name, self._resolve(sources_of(self.pools, media), media=media))
        if starting:
            self.hypervisor.start(name)
            self.log.info(f"started domain {name}")
        update_vm(
            self.database,
            name,
            xml=self.hypervisor.xml(name),
            media=media_of(media, started=starting),
            state="start" if starting else "stop",
            seen=self.hypervisor.state(name),
        )

    def _install_by_guest(self, media: Sequence[Json]) -> None:
        """Start the domain with its CD-ROMs and wait until the guest, done with installing, powers off."""
        if not media:
            why = "it called install_from_cdrom(), but its domain has no CD-ROM"
            raise ScriptFailed(self._what("start"), why, "give the profile an image of kind iso")
        name = self.plan["vm"]["name"]
        self.hypervisor.redefine(name, self._resolve(sources_of(self.pools, media), media=media))
        disks = [(self.pools[volume["pool"]], volume["volume"]) for volume in self.plan["volumes"]]
        install_by_guest(self.hypervisor, self.log, name, disks, self._first_boot.timeout_s)

    def _media(self) -> list[Json]:
        """The CD-ROMs that the domain has. Answers the script has not made are no CD-ROM."""
        disks = [] if self._domain is None else self._domain.findall("devices/disk")
        named = {disk_source(disk) for disk in disks}
        return [
            cdrom
            for cdrom in self.plan.get("cdroms", ())
            if (cdrom["pool"], cdrom["volume"]) in named
            and not (cdrom["temporary"] and not self._has_made(cdrom))
        ]

    def _has_made(self, volume: Json) -> bool:
        return self._broker is not None and self._broker.has_made(volume)

    def _drop_answers(self, keep: Sequence[Json] = ()) -> None:
        """Delete the CD-ROMs made for this build alone: they may hold secrets, and nobody needs them now."""
        for cdrom in own_cdroms(self.plan):
            if cdrom not in keep and self._has_made(cdrom):
                self._delete(cdrom)

    def _delete(self, volume: Json) -> None:
        pool, name = self.pools[volume["pool"]], volume["volume"]
        patiently(lambda: pool.delete_volume(name, missing_ok=True))
        self.journal.note_gone(VOLUME, f"{pool.name}/{name}")

    def clean_up_after_failure(self) -> None:
        """Give the script's own cleanup() a short chance; its errors are logged, never raised.

        A runner that hangs or has ended is not asked.
        """
        if self._conversation is None or not self._conversation.usable:
            return
        self.log.stage = "cleanup"
        with suppress(PvcError):
            limit = min(LAST_CLEANUP_S, self.config.builds.stage_timeout_s.cleanup)
            self._conversation.call({"type": "stage", "stage": "cleanup"}, self._what("cleanup"), limit)

    def close(self) -> None:
        """End the sandbox and unmap its volumes. Safe to repeat."""
        self._conversation = None
        self._stack.close()

    # ---- parts

    def _enter(self, step: int, stage: str, status: str) -> None:
        self.log.flush()
        self.log.stage = stage

        def enter(session: Session) -> None:
            build = builds.find_held(session, self.journal.build_id, self.owner)
            if build.step != step:  # else this transaction was committed, and the answer got lost
                builds.enter_stage(build, step, stage, status)

        self.database.patiently(enter)

    def _what(self, stage: str) -> str:
        return f"run {stage} of script {self.plan['script']['name']}"

    @property
    def _own_volumes(self) -> list[Json]:
        """What this build makes, of the plan."""
        return [*self.plan["volumes"], *own_cdroms(self.plan)]

    def _volume_problems(self, volume: Json) -> list[Problem]:
        pool = self.pools.get(volume["pool"])
        path = f"volume {volume['pool']}/{volume['volume']}"
        if pool is None:
            return [Problem(path, f"this node has no pool {volume['pool']}")]
        problems = []
        if pool.volume_or_none(volume["volume"]):
            problems.append(Problem(path, "exists already"))
        source = volume.get("source_volume")
        if source and not pool.volume_or_none(source):
            problems.append(Problem(path, f"its source {source} does not exist"))
        return problems

    def _space_problems(self) -> list[Problem]:
        needs: dict[str, int] = {}
        for volume in self._own_volumes:
            if volume["pool"] in self.pools and not volume.get("source_volume"):
                needs[volume["pool"]] = needs.get(volume["pool"], 0) + (volume["size_bytes"] or 0)
        free = {pool: self.pools[pool].space().free_bytes for pool in needs}
        return [
            Problem(f"pool {pool}", f"needs {need // MIB} MiB, has {free[pool] // MIB} MiB free")
            for pool, need in needs.items()
            if need > free[pool]
        ]

    def _require_volumes(self) -> None:
        """The script had to make what its domain document names, and all disks of the plan."""
        named = {disk_source(disk) for disk in self._domain.findall("devices/disk")}
        named |= {(volume["pool"], volume["volume"]) for volume in self.plan["volumes"]}
        missing = [
            f"{volume['pool']}/{volume['volume']}"
            for volume in (*self.plan["volumes"], *self._media())
            if (volume["pool"], volume["volume"]) in named
            and self.pools[volume["pool"]].volume_or_none(volume["volume"]) is None
        ]
        if missing:
            why = f"the script has not made {', '.join(missing)}"
            raise ScriptFailed(self._what("prepare"), why, "call self.volumes.create() in prepare()")

    def _open_sandbox(self) -> Any:
        settings = self.config.sandbox
        slot = self._stack.enter_context(uid_slot(SLOTS))
        return open_sandbox(
            SandboxSpec(
                build_id=self.journal.build_id,
                first_uid=range_start(settings.first_uid, slot),
                hidden_paths=(self.config.state_directory, *settings.hidden_paths),
                network=settings.network,
                sdk_zip=sdk_zip(settings.sdk_directory),
                environment={},
                memory_mib=settings.memory_mib,
                processes=settings.processes,
            )
        )

    @property
    def _first_boot(self) -> FirstBoot:
        return self._broker.first_boot if self._broker else FirstBoot()

    def _resolve(self, find_source: FindSource, *, media: Sequence[Json] | None = None) -> str:
        log = self.hypervisor.console_path(self.plan["vm"]["name"])
        kept = None if media is None else {(cdrom["pool"], cdrom["volume"]) for cdrom in media}
        definition = resolve_domain(self._domain, self.plan, find_source, log, media=kept)
        return mark_domain(definition, DomainMark(self.config.cluster.name, self.journal.build_id))


def _end_sandbox(sandbox: Sandbox, conversation: Conversation) -> None:
    sandbox.kill()
    conversation.close_output()
