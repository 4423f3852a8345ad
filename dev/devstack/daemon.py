"""Our own daemons: how the stack runs their code."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from devstack.process import PYTHON
from devstack.service import Service
from devstack.state import CHECKOUT

CODE = ("api-daemon", "client-cli", "node-daemon", "daemon-common", "provisioner-scripts")


class Daemon(Service):
    """A daemon of ours, run from a copy of the checkout made when it starts.

    A checkout may lie where the API's unprivileged user cannot read it (below /root), and an edit must not
    reach half of a running daemon. `dev/stack restart` takes the new code.
    """

    @property
    def code(self) -> Path:
        return self.state / "code" / self.name

    def copy_code(self) -> None:
        shutil.rmtree(self.code, ignore_errors=True)
        for name in CODE:
            if (CHECKOUT / name).is_dir():
                shutil.copytree(
                    CHECKOUT / name, self.code / name, ignore=shutil.ignore_patterns("__pycache__")
                )
        for directory, names, files in os.walk(self.state / "code"):
            for name in names:
                os.chmod(os.path.join(directory, name), 0o755)
            for name in files:
                os.chmod(os.path.join(directory, name), 0o644)
        (self.state / "code").chmod(0o755)

    def environment(self, configuration: Path) -> Mapping[str, str]:
        return {
            "PYTHONPATH": python_path(self.code),
            "PVC_CONFIG": str(configuration),
            "PYTHONUNBUFFERED": "1",
        }


def python_path(base: Path) -> str:
    return ":".join(str(base / name) for name in CODE)


def program(module: str, *arguments: str) -> list[str]:
    """A program of ours: `-P` keeps the working directory out of the module search."""
    return [PYTHON, "-P", "-m", module, *arguments]
