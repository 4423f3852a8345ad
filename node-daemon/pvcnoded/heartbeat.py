"""The node's report: its row is written every few seconds, with the states its VMs are seen in."""

import logging
import os

from sqlalchemy import select

from pvccommon import __version__
from pvccommon.errors import PvcError
from pvccommon.models import Node, Vm, now
from pvcnoded.build import BuildProcess
from pvcnoded.pool_report import PoolReport
from pvcnoded.probe import memory_mib, probe_capabilities, probe_filesystems, probe_networks, system_words

logger = logging.getLogger("pvc.heartbeat")


class Heartbeat:
    """Reports this node. What cannot change while the daemon runs is probed once."""

    def __init__(self, process: BuildProcess) -> None:
        self._process = process
        self._config = process.config
        self._capabilities = probe_capabilities(self._config)
        self._filesystems = probe_filesystems()
        self._pools = PoolReport(process.pools)
        self._started = now()

    def beat(self) -> None:
        """Write the row; raises when the database does not answer."""
        total, free = memory_mib()
        pools = self._pools.take()
        states = self._vm_states()  # last: a command may write a newer one meanwhile
        values = {
            "heartbeat": now(),
            "started": self._started,
            "stopped": False,
            "memory_total_mib": total,
            "memory_free_mib": free,
            "vcpus": os.cpu_count() or 1,
            "load": round(os.getloadavg()[0], 2),
            "version": __version__,
            "pools": pools,
            "networks": probe_networks(self._config),
            "filesystems": self._filesystems,
            "capabilities": {
                **self._capabilities,
                "libvirt": "running" if states is not None else "does not answer",
            },
            **system_words(),
        }
        with self._process.database.session() as session:
            row = session.get(Node, self._config.node.name)
            if row is None:
                session.add(Node(name=self._config.node.name, **values))
            else:
                for column, value in values.items():
                    setattr(row, column, value)
            if states is not None:
                self._note_vms(session, states)

    def say_goodbye(self) -> None:
        """The daemon ends in order: nothing more is to be sent here."""
        with self._process.database.session() as session:
            row = session.get(Node, self._config.node.name)
            if row is not None:
                row.stopped = True

    def _note_vms(self, session: object, states: dict[str, str]) -> None:
        query = select(Vm).where(Vm.node == self._config.node.name, Vm.state != "provision")
        for vm in session.execute(query).scalars():  # type: ignore[attr-defined]
            seen = states.get(vm.name, "missing")
            if vm.seen != seen:
                vm.seen = seen

    def _vm_states(self) -> dict[str, str] | None:
        try:
            return self._process.hypervisor.states()
        except PvcError as exc:
            logger.warning("libvirt: %s", exc.message)
            return None
