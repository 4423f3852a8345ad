"""The forward way of one build, step by step (docs/architecture.md, "the walk of one build").

Nothing is undone here: `build.py` does that when a step raises.
"""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from pvccommon import builds, steps
from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.errors import Internal, Problem, PvcError, ScriptFailed, WrongInput
from pvccommon.models import Json
from pvccommon.storage.pool import StoragePool
from pvcnoded.broker import Broker
from pvcnoded.build_log import BuildLog
from pvcnoded.context import script_context
from pvcnoded.conversation import Conversation
from pvcnoded.domain_policy import check_domain
from pvcnoded.domain_xml import FindSource, resolve_domain, source_to_come, sources_of
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.journal import Journal
from pvcnoded.sandbox.sandbox import Sandbox, SandboxSpec, open_sandbox
from pvcnoded.sandbox.userns import range_start, uid_slot
from pvcnoded.sdk import sdk_zip
from pvcnoded.undo import DOMAIN, VM
from pvcnoded.vm_record import update_vm, write_vm

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
    _conversation: Conversation | None = None
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
        problems = [problem for volume in self.plan["volumes"] for problem in self._volume_problems(volume)]
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
        if self._domain is None:
            return
        name = self.plan["vm"]["name"]
        starting = self.plan["start"]
        self._enter(steps.BOOT, "start", f"starting {name}" if starting else f"defining {name}")
        self._require_volumes()
        definition = self._resolve(sources_of(self.pools))
        self.hypervisor.redefine(name, definition)
        if starting:
            self.hypervisor.start(name)
            self.log.info(f"started domain {name}")
        update_vm(
            self.database,
            name,
            xml=self.hypervisor.xml(name),
            state="start" if starting else "stop",
            seen=self.hypervisor.state(name),
        )

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
        with self.database.session() as session:
            build = builds.find_build(session, self.journal.build_id, lock=True)
            builds.enter_stage(build, step, stage, status)

    def _what(self, stage: str) -> str:
        return f"run {stage} of script {self.plan['script']['name']}"

    def _volume_problems(self, volume: Json) -> list[Problem]:
        pool = self.pools.get(volume["pool"])
        path = f"volume {volume['pool']}/{volume['volume']}"
        if pool is None:
            return [Problem(path, f"this node has no pool {volume['pool']}")]
        problems = []
        if pool.volume_or_none(volume["volume"]):
            problems.append(Problem(path, "exists already"))
        if volume["source_volume"] and not pool.volume_or_none(volume["source_volume"]):
            problems.append(Problem(path, f"its source {volume['source_volume']} does not exist"))
        return problems

    def _space_problems(self) -> list[Problem]:
        needs: dict[str, int] = {}
        for volume in self.plan["volumes"]:
            if volume["pool"] in self.pools and not volume["source_volume"]:
                needs[volume["pool"]] = needs.get(volume["pool"], 0) + (volume["size_bytes"] or 0)
        free = {pool: self.pools[pool].space().free_bytes for pool in needs}
        return [
            Problem(f"pool {pool}", f"needs {need // MIB} MiB, has {free[pool] // MIB} MiB free")
            for pool, need in needs.items()
            if need > free[pool]
        ]

    def _require_volumes(self) -> None:
        """The script had to make what its domain document names."""
        missing = [
            f"{volume['pool']}/{volume['volume']}"
            for volume in self.plan["volumes"]
            if self.pools[volume["pool"]].volume_or_none(volume["volume"]) is None
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

    def _resolve(self, find_source: FindSource) -> str:
        log = self.hypervisor.console_path(self.plan["vm"]["name"])
        return resolve_domain(self._domain, self.plan, find_source, log)


def _end_sandbox(sandbox: Sandbox, conversation: Conversation) -> None:
    sandbox.kill()
    conversation.close_output()
