"""What the API may ask of the node that runs a build."""

import logging
import os
import signal
import threading
import time

from pvccommon import builds
from pvccommon.errors import PvcError, WrongState
from pvccommon.models import FINAL_STATES, BuildState, Json
from pvcnoded.build import BuildProcess
from pvcnoded.command import Verbs
from pvcnoded.lease import Owner
from pvcnoded.sweeper import Sweeper

KILL_AFTER_S = 2.5  # a cancelled build shall have ended after five seconds
logger = logging.getLogger("pvc.commands")


class BuildCommands:
    """Changes of builds under way, or of what they have left."""

    def __init__(self, process: BuildProcess) -> None:
        self._process = process
        self._database = process.database
        self._sweeper = Sweeper(process)

    def verbs(self) -> Verbs:
        return {"build.cancel": self.cancel_build, "build.discard": self.discard_volumes}

    def cancel_build(self, arguments: Json) -> Json:
        """{build} -> {}: see to the end of a build whose row already says that it shall end.

        Its process is asked; one that does not begin to undo soon (it hangs, or waits for a slow device) is
        killed. A build whose process is gone is undone now, and not only by the next sweep.
        """
        with self._database.session() as session:
            build = builds.find_build(session, arguments["build"])
        owner = Owner.parse(build.lease_owner) if build.lease_owner and build.cancel_requested else None
        if owner is not None and owner.is_alive() and owner != self._process.owner:
            os.kill(owner.pid, signal.SIGTERM)
        threading.Thread(target=self._see_to_end, args=(build.id, owner), daemon=True).start()
        return {}

    def _see_to_end(self, build_id: str, owner: Owner | None) -> None:
        deadline = time.monotonic() + KILL_AFTER_S
        try:
            while owner is not None and owner.is_alive() and self._state(build_id) == BuildState.RUNNING:
                if time.monotonic() > deadline:
                    logger.warning("build %s: process %d does not end; killing it", build_id, owner.pid)
                    owner.kill()
                time.sleep(0.1)
            self._sweeper.recover_if_dead(build_id)
        except PvcError as exc:
            logger.error("build %s: cancelling: %s", build_id, exc.message)

    def _state(self, build_id: str) -> str:
        with self._database.session() as session:
            return builds.find_build(session, build_id).state

    def discard_volumes(self, arguments: Json) -> Json:
        """{build} -> {failures: […]}: remove what is to be removed of an ended build. Safe to repeat."""
        with self._database.session() as session:
            build = builds.find_build(session, arguments["build"])
        if build.state not in FINAL_STATES:
            raise WrongState(f"discard the volumes of task {build.id}", f"it has not ended: {build.state}")
        return {"failures": self._process.undo_rest(build.id)}
