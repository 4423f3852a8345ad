"""Short commands the API sends to the node of a VM: each answers with plain JSON, within seconds."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping

from pvccommon import builds
from pvccommon.errors import NotFound, PvcError, WrongInput, WrongState
from pvccommon.models import Json, Vm
from pvcnoded.build import BuildProcess
from pvcnoded.domain_xml import refresh_disks, sources_of
from pvcnoded.lease import Owner
from pvcnoded.vm_record import update_vm

MAX_CONSOLE_LINES = 10_000
logger = logging.getLogger("pvc.commands")


class Commands:
    """The verbs, by name."""

    def __init__(self, process: BuildProcess) -> None:
        self._process = process
        self._database = process.database
        self._hypervisor = process.hypervisor
        self._verbs: Mapping[str, Callable[[Json], Json]] = {
            "vm.state": self.set_vm_state,
            "vm.remove": self.remove_vm,
            "vm.console": self.read_console,
            "volume.find": self.find_volume,
            "build.cancel": self.cancel_build,
        }

    def run(self, verb: str, arguments: Json) -> Json:
        if verb not in self._verbs:
            raise WrongInput(
                f"run {verb}", f"this node knows only: {', '.join(self._verbs)}", "update pvc-node-daemon"
            )
        return self._verbs[verb](arguments)

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
        self._hypervisor.undefine(name)
        volumes = vm.volumes if arguments.get("delete_disks") else []
        for volume in volumes:
            pool = self._process.pools.get(volume["pool"])
            if pool is None:
                raise NotFound(f"remove VM {name}", f"this node has no pool {volume['pool']} any more")
            pool.delete_volume(volume["volume"], missing_ok=True)
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

    def find_volume(self, arguments: Json) -> Json:
        """{pool, volume} -> {found: null or {size_bytes}}."""
        pool = self._process.pools.get(arguments["pool"])
        if pool is None:
            raise NotFound(
                f"find volume {arguments['pool']}/{arguments['volume']}", "this node has no such pool"
            )
        volume = pool.volume_or_none(arguments["volume"])
        return {"found": None if volume is None else {"size_bytes": volume.size_bytes}}

    def cancel_build(self, arguments: Json) -> Json:
        """{build} -> {}: end the process of a build whose row already says that it shall end."""
        with self._database.session() as session:
            build = builds.find_build(session, arguments["build"])
            owner = Owner.parse(build.lease_owner) if build.lease_owner and build.cancel_requested else None
        if owner is not None and owner.is_alive() and owner != self._process.owner:
            os.kill(owner.pid, signal.SIGTERM)
        return {}

    # ---- states

    def _start(self, name: str, _force: bool, _wait: bool) -> str:
        self._power_on(name)
        update_vm(self._database, name, state="start", failed_reason="")
        return f"Started VM {name}."

    def _power_on(self, name: str) -> None:
        """Start a domain with its disks as they are now; one that runs is left alone."""
        if self._hypervisor.state(name) == "running":
            return
        sources = sources_of(self._process.pools)
        definition = refresh_disks(self._hypervisor.xml(name), self._find_vm(name).volumes, sources)
        self._hypervisor.redefine(name, definition)
        self._hypervisor.start(name)
        update_vm(self._database, name, xml=self._hypervisor.xml(name))

    def _stop(self, name: str, _force: bool, _wait: bool) -> str:
        self._hypervisor.stop(name)
        update_vm(self._database, name, state="stop")
        return f"Stopped VM {name}."

    def _disable(self, name: str, _force: bool, _wait: bool) -> str:
        self._hypervisor.stop(name)
        update_vm(self._database, name, state="disable")
        return f"Disabled VM {name}."

    def _shutdown(self, name: str, _force: bool, wait: bool) -> str:
        self._hypervisor.shutdown(name, wait=wait)
        update_vm(self._database, name, state="stop")
        return f"VM {name} has shut down." if wait else f"Shutting down VM {name}."

    def _restart(self, name: str, _force: bool, wait: bool) -> str:
        """The guest powers off, then starts with its definition of now; one that does not is left running."""
        self._hypervisor.shutdown(name, wait=False)
        update_vm(self._database, name, state="restart", failed_reason="")
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
