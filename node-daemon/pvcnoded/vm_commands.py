"""What the API may ask of the node of a VM: states, removal, its console."""

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pvccommon.errors import NotFound, PvcError, WrongInput, WrongState
from pvccommon.models import Json, Vm
from pvcnoded.build import BuildProcess
from pvcnoded.command import Verbs
from pvcnoded.domain_xml import refresh_disks, sources_of
from pvcnoded.media import Media
from pvcnoded.vm_record import update_vm

MAX_CONSOLE_LINES = 10_000
logger = logging.getLogger("pvc.commands")


class VmCommands:
    """Changes of VMs that exist, on the node they run on."""

    def __init__(self, process: BuildProcess) -> None:
        self._process = process
        self._database = process.database
        self._hypervisor = process.hypervisor
        self._media = Media(process.config, process.database, process.pools, process.hypervisor)

    def verbs(self) -> Verbs:
        return {
            "vm.state": self.set_vm_state,
            "vm.remove": self.remove_vm,
            "vm.console": self.read_console,
        }

    def set_vm_state(self, arguments: Json) -> Json:
        """{vm, state: start|stop|shutdown|restart|disable, force, wait} -> {message}."""
        name, state = arguments["vm"], arguments["state"]
        vm = self._find_vm(name)
        if vm.state == "provision":
            raise WrongState(f"{state} VM {name}", "it is being built", "see: pvc cluster task")
        action = {
            "start": self._start,
            "stop": self._stop,
            "disable": self._disable,
            "shutdown": self._shutdown,
            "restart": self._restart,
        }.get(state)
        if action is None:
            raise WrongInput(f"change VM {name}", f"{state!r} is not a state")
        message = action(name, bool(arguments.get("force")), bool(arguments.get("wait")))
        update_vm(self._database, name, seen=self._hypervisor.state(name))
        return {"message": message}

    def remove_vm(self, arguments: Json) -> Json:
        """{vm, delete_disks} -> {message}. Stops it first; safe to repeat."""
        name = arguments["vm"]
        vm = self._find_vm(name)
        if vm.state == "provision":
            raise WrongState(f"remove VM {name}", "it is being built", "pvc cluster task cancel ID")
        with self._media_turn(vm):
            self._hypervisor.undefine(name)
            volumes = vm.volumes if arguments.get("delete_disks") else []
            for volume in volumes:
                pool = self._process.pools.get(volume["pool"])
                if pool is None:
                    raise NotFound(f"remove VM {name}", f"this node has no pool {volume['pool']} any more")
                pool.delete_volume(volume["volume"], missing_ok=True)
            self._media.delete_temporary(vm)
            with self._database.session() as session:
                row = session.get(Vm, name)
                if row is not None:
                    session.delete(row)
        return {
            "message": f"Removed VM {name} and its {len(volumes)} disks."
            if volumes
            else f"Undefined VM {name}."
        }

    def read_console(self, arguments: Json) -> Json:
        """{vm, lines} -> {data}: the end of the serial console's log."""
        name = self._find_vm(arguments["vm"]).name
        return {
            "data": self._hypervisor.console_tail(
                name, min(int(arguments.get("lines") or 0), MAX_CONSOLE_LINES)
            )
        }

    # ---- states

    def _start(self, name: str, _force: bool, _wait: bool) -> str:
        self._power_on(name)
        update_vm(self._database, name, state="start", failed_reason="")
        return f"Started VM {name}."

    def _power_on(self, name: str) -> None:
        """Start a domain with its disks as they are now; one that runs is left alone.

        Its CD-ROMs are in it the first time only.
        """
        with self._media_turn(self._find_vm(name)):
            if self._hypervisor.state(name) == "running":
                return
            self._media.eject_used(name)
            vm = self._find_vm(name)
            sources = sources_of(self._process.pools, vm.media)
            definition = refresh_disks(self._hypervisor.xml(name), [*vm.volumes, *vm.media], sources)
            self._hypervisor.redefine(name, definition)
            self._hypervisor.start(name)
            self._media.note_started(name)
        update_vm(self._database, name, xml=self._hypervisor.xml(name))

    def _media_turn(self, vm: Vm) -> AbstractContextManager[None]:
        """For the time in which a VM with CD-ROMs is changed; most have none, and wait for nobody."""
        return self._media.turn() if vm.media else nullcontext()

    def _stop(self, name: str, _force: bool, _wait: bool) -> str:
        with self._wanting(name, "stop"):
            self._hypervisor.stop(name)
        return f"Stopped VM {name}."

    def _disable(self, name: str, _force: bool, _wait: bool) -> str:
        with self._wanting(name, "disable"):
            self._hypervisor.stop(name)
        return f"Disabled VM {name}."

    def _shutdown(self, name: str, _force: bool, wait: bool) -> str:
        with self._wanting(name, "stop"):
            self._hypervisor.shutdown(name, wait=wait)
        return f"VM {name} has shut down." if wait else f"Shutting down VM {name}."

    @contextmanager
    def _wanting(self, name: str, state: str) -> Iterator[None]:
        """Write what is wanted before it is done: a VM that stops with a CD-ROM in it is started again unless
        it was meant to. Taken back when it cannot be done."""
        before = self._find_vm(name).state
        update_vm(self._database, name, state=state)
        try:
            yield
        except PvcError:
            update_vm(self._database, name, state=before)
            raise

    def _restart(self, name: str, _force: bool, wait: bool) -> str:
        """The guest powers off, then starts with its definition of now; one that does not is left running."""
        with self._wanting(name, "restart"):
            self._hypervisor.shutdown(name, wait=False)
        update_vm(self._database, name, failed_reason="")
        if wait:
            self._start_again(name)
            return f"Restarted VM {name}."
        threading.Thread(target=self._start_again, args=(name,), name=f"restart {name}", daemon=True).start()
        return f"Restarting VM {name}."

    def _start_again(self, name: str) -> None:
        try:
            self._hypervisor.wait_shutoff(name)
            self._power_on(name)
        except PvcError as exc:
            logger.warning("restart VM %s: %s", name, exc.message)
            update_vm(self._database, name, state="start", failed_reason=exc.message)
            raise
        update_vm(self._database, name, state="start", seen=self._hypervisor.state(name))

    def _find_vm(self, name: str) -> Vm:
        with self._database.session() as session:
            vm: Vm | None = session.get(Vm, name)
        if vm is None:
            raise NotFound(f"find VM {name}", "there is no such VM", "see: pvc vm list")
        return vm
