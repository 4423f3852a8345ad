"""Redis: loopback, a password, and an append-only file so that queued tasks survive a restart."""

import os
import pwd
import socket

from devstack.service import Launch, Service
from devstack.state import write_private
from pvccommon.errors import EnvironmentFault

USER = "redis"


class Redis(Service):
    name = "redis"

    def prepare(self) -> None:
        account = pwd.getpwnam(USER)
        owner = (account.pw_uid, account.pw_gid)
        directory = self.state / "redis"
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, *owner)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.state.port(self.name)),
            "requirepass": self.state.secret("queue"),
            "dir": str(directory),
            "appendonly": "yes",
            "save": '""',
            "daemonize": "no",
        }
        write_private(
            directory / "redis.conf", "".join(f"{key} {value}\n" for key, value in settings.items()), owner
        )

    def launch(self) -> Launch:
        return Launch(["/usr/bin/redis-server", str(self.state / "redis" / "redis.conf")], user=USER)

    def check_ready(self) -> None:
        answer = self._ask(f"AUTH {self.state.secret('queue')}\r\nPING\r\n")
        if "+PONG" not in answer:
            raise EnvironmentFault("ask redis", answer.strip() or "no answer")

    def address(self) -> str:
        return f"127.0.0.1:{self.state.port(self.name)}"

    def _ask(self, commands: str) -> str:
        """Commands in Redis' inline form, and what came back."""
        try:
            with socket.create_connection(("127.0.0.1", self.state.port(self.name)), timeout=5) as connection:
                connection.sendall(f"{commands}QUIT\r\n".encode())
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode(errors="replace")
        except OSError as exc:
            raise EnvironmentFault("ask redis", str(exc)) from exc
