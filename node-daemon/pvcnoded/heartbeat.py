"""The node's report: its row is written every few seconds, with the states its VMs are seen in."""

import logging
import os
from datetime import datetime

from sqlalchemy import select

from pvccommon import __version__
from pvccommon.database import database_now
from pvccommon.errors import PvcError
from pvccommon.models import Json, Node, Vm
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
        self._started: datetime | None = None

    def beat(self) -> None:
        """Write the row; raises when the database does not answer."""
        total, free = memory_mib()
        pools = self._pools.take()
        answers = self._note_vms()
        values: Json = {
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
                "ceph_manager": self._config.storage.ceph.manager_user is not None,
                "libvirt": "running" if answers else "does not answer",
            },
            **system_words(),
        }
        with self._process.database.session() as session:
            values["heartbeat"] = database_now(session)
            values["started"] = self._started = self._started or values["heartbeat"]
            row = session.get(Node, self._config.node.name)
            if row is None:
                session.add(Node(name=self._config.node.name, **values))
            else:
                for column, value in values.items():
                    setattr(row, column, value)

    def say_goodbye(self) -> None:
        """The daemon ends in order: nothing more is to be sent here."""
        with self._process.database.session() as session:
            row = session.get(Node, self._config.node.name)
            if row is not None:
                row.stopped, row.heartbeat = True, database_now(session)

    def _note_vms(self) -> bool:
        """Write the states the VMs are in; whether libvirt answers.

        The rows are locked before libvirt is asked: a command that changes a VM meanwhile writes its newer
        state after this one, never before.
        """
        mine = select(Vm).where(Vm.node == self._config.node.name, Vm.state != "provision")
        with self._process.database.session() as session:
            vms = session.execute(mine.order_by(Vm.name).with_for_update()).scalars().all()
            try:
                states = self._process.hypervisor.states()
            except PvcError as exc:
                logger.warning("libvirt: %s", exc.message)
                return False
            for vm in vms:
                seen = states.get(vm.name, "missing")
                if vm.seen != seen:
                    vm.seen = seen
        return True
