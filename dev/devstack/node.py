"""The node daemon, as root, because it mounts, makes devices and defines VMs."""

from devstack.api import Api
from devstack.configuration import node_name
from devstack.daemon import Daemon, program
from devstack.service import Launch
from pvccommon.errors import EnvironmentFault

MODULE = "pvcnoded.main"


class Node(Daemon):
    name = "node"
    ready_timeout_s = 90
    # Running builds are ended and undone first.
    stop_timeout_s = 30

    def prepare(self) -> None:
        self.copy_code()

    def launch(self) -> Launch:
        return Launch(
            program(MODULE, "serve"), env=self.environment(self.state.node_configuration(self.node))
        )

    def check_ready(self) -> None:
        """The API has heard from it: its heartbeat is in the database."""
        found = Api(self.state).get(f"/api/v1/node/{node_name(self.node)}")
        state = found[0]["daemon_state"]
        if state != "run":
            raise EnvironmentFault(f"ask {self.address()}", f"its state is {state!r}")

    def address(self) -> str:
        return f"node {node_name(self.node)}"
