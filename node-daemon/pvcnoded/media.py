"""CD-ROMs of VMs that were started with one: taken away when the guest first stops or reboots.

A reboot ends such a domain (see `resolve_domain`), so both are seen as a domain that has run and does not any
more. Two processes look: the supervisor now and then, and the worker for commands before it starts a VM. One
of them at a time may change a domain that has CD-ROMs (`turn`).
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import String, cast, select

from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault, PvcError
from pvccommon.models import Json, Vm
from pvccommon.storage.pool import StoragePool
from pvcnoded.domain_xml import refresh_disks, sources_of, without_media
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.vm_record import update_vm

NO_MEDIA = "[]"
logger = logging.getLogger("pvc.media")


class Media:
    """The CD-ROMs of this node's VMs; those of VMs being built are their builds'."""

    def __init__(
        self, config: Config, database: Database, pools: Mapping[str, StoragePool], hypervisor: Hypervisor
    ) -> None:
        self._node = config.node.name
        self._locked = config.state_directory
        self._database = database
        self._pools = pools
        self._hypervisor = hypervisor

    def look_after(self) -> None:
        """Take away the CD-ROMs of VMs that have stopped; one that shall run starts from its disk.

        Safe to repeat; errors of one VM do not stop the others.
        """
        for name in self._names():
            try:
                self._look_after(name)
            except PvcError as exc:
                logger.error("VM %s: its CD-ROM could not be taken away: %s", name, exc.message)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else on this node changes a domain with CD-ROMs meanwhile."""
        directory = os.open(self._locked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def note_started(self, name: str) -> None:
        """The VM runs with its CD-ROMs: when it does no more, they go."""
        vm = self._find(name)
        if vm is not None and any(not cdrom["started"] for cdrom in vm.media):
            media = [{**cdrom, "started": True} for cdrom in vm.media]
            update_vm(self._database, name, media=media)

    def eject_used(self, name: str) -> bool:
        """Take away the CD-ROMs of a VM that has run with them and does not now; whether it was so.

        To be called in a `turn`. Safe to repeat.
        """
        vm = self._find(name)
        used = vm is not None and vm.state != "provision" and any(cdrom["started"] for cdrom in vm.media)
        if vm is None or not used or self._hypervisor.state(name) != "shutoff":
            return False
        definition = without_media(self._hypervisor.xml(name))
        definition = refresh_disks(definition, vm.volumes, sources_of(self._pools))
        self._hypervisor.redefine(name, definition)
        self.delete_temporary(vm)
        update_vm(self._database, name, media=[], xml=self._hypervisor.xml(name), seen="shutoff")
        logger.info("VM %s: took its CD-ROM away", name)
        return True

    def delete_temporary(self, vm: Vm) -> None:
        """Delete the CD-ROMs that were made for this VM alone. Safe to repeat."""
        for cdrom in vm.media:
            if cdrom["temporary"]:
                self._pool(cdrom, vm).delete_volume(cdrom["volume"], missing_ok=True)

    def _pool(self, cdrom: Json, vm: Vm) -> StoragePool:
        pool = self._pools.get(cdrom["pool"])
        if pool is None:
            what = f"delete the CD-ROM {cdrom['volume']} of VM {vm.name}"
            raise EnvironmentFault(what, f"this node has no pool {cdrom['pool']} any more")
        return pool

    def _look_after(self, name: str) -> None:
        if self._hypervisor.state(name) == "running":
            self.note_started(name)  # somebody has started it past us, such as libvirt after a boot
            return
        with self.turn():
            if self.eject_used(name) and self._is_wanted(name):
                self._start(name)

    def _start(self, name: str) -> None:
        try:
            self._hypervisor.start(name)
        except PvcError as exc:
            update_vm(self._database, name, failed_reason=exc.message)
            raise
        update_vm(self._database, name, seen=self._hypervisor.state(name))

    def _is_wanted(self, name: str) -> bool:
        vm = self._find(name)
        return vm is not None and vm.state == "start"

    def _names(self) -> list[str]:
        with self._database.session() as session:
            query = select(Vm.name).where(
                Vm.node == self._node, Vm.state != "provision", cast(Vm.media, String) != NO_MEDIA
            )
            return list(session.execute(query.order_by(Vm.name)).scalars())

    def _find(self, name: str) -> Vm | None:
        with self._database.session() as session:
            vm: Vm | None = session.get(Vm, name)
            return vm
