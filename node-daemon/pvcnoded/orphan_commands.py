"""What the API may ask of a node about orphans."""

import logging

from pvccommon.errors import PvcError
from pvccommon.models import Json
from pvcnoded.build import BuildProcess
from pvcnoded.command import Verbs
from pvcnoded.orphans import OrphanFinder, Owners, load_owners

logger = logging.getLogger("pvc.commands")


class OrphanCommands:
    """Lists orphans, and removes those an operator has chosen."""

    def __init__(self, process: BuildProcess) -> None:
        self._database = process.database
        self._hypervisor = process.hypervisor
        self._finder = OrphanFinder(
            process.config.node.name,
            process.config.cluster.name,
            process.pools,
            process.hypervisor,
            self._owners,
        )

    def verbs(self) -> Verbs:
        return {"orphans.list": self.list_orphans, "orphans.remove": self.remove_orphans}

    def list_orphans(self, arguments: Json) -> Json:
        """{pools} -> {orphans: [Orphan.to_json()], named: [what the disks of this node's domains name]}."""
        found = [orphan.to_json() for orphan in self._finder.find(arguments["pools"])]
        named = self._finder.named_sources(self._hypervisor.look_at_domains())
        return {"orphans": found, "named": sorted(named)}

    def remove_orphans(self, arguments: Json) -> Json:
        """{pools, ids} -> {removed: [id], failed: [{id, message}]}; only what still is one is removed."""
        found = {orphan.id: orphan for orphan in self._finder.find(arguments["pools"])}
        removed, failed = [], []
        for orphan_id in arguments["ids"]:
            orphan = found.get(orphan_id)
            if orphan is None:
                failed.append({"id": orphan_id, "message": "it is no orphan any more"})
                continue
            try:
                self._finder.remove(orphan)
            except PvcError as exc:
                failed.append({"id": orphan_id, "message": exc.message})
            else:
                logger.warning("removed orphan %s: %s", orphan_id, orphan.why)
                removed.append(orphan_id)
        return {"removed": removed, "failed": failed}

    def _owners(self) -> Owners:
        with self._database.session() as session:
            return load_owners(session)
