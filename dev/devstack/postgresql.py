"""PostgreSQL: a cluster of its own, TCP on loopback with a password, a socket for its administrator."""

import os
import pwd
import signal
from pathlib import Path

from devstack.service import Launch, Service
from devstack.state import write_private
from pvccommon.errors import EnvironmentFault
from pvccommon.run import Completed, run

USER = "postgres"
DATABASE = "pvc"
AS_POSTGRES = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--")
RULES = "local all postgres peer\nhost all all 127.0.0.1/32 scram-sha-256\n"


class Postgresql(Service):
    name = "postgresql"
    # Fast shutdown: ends sessions instead of waiting for them (postgres(1)).
    stop_signal = signal.SIGINT

    @property
    def directory(self) -> Path:
        return self.state / "postgresql"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        account = pwd.getpwnam(USER)
        os.chown(self.directory, account.pw_uid, account.pw_gid)
        if not (self.data / "PG_VERSION").exists():
            self._as_postgres(
                program("initdb"),
                "--no-sync",
                "--auth=peer",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "-D",
                str(self.data),
            )
        # An unclean end (power, SIGKILL) leaves these; the pid in them may be a zombie's or a stranger's.
        for lock in (self.data / "postmaster.pid", *self.directory.glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)
        write_private(self.data / "pg_hba.conf", RULES, (account.pw_uid, account.pw_gid))

    def launch(self) -> Launch:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.state.port(self.name)),
            "unix_socket_directories": str(self.directory),
            "shared_buffers": "32MB",
            "max_connections": "200",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return Launch([program("postgres"), "-D", str(self.data), *options], user=USER)

    def check_ready(self) -> None:
        port = str(self.state.port(self.name))
        run([program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", port], timeout_s=10)

    def after_start(self) -> None:
        """The role with its password, and the database it owns."""
        password = self.state.secret("database")
        role = "ALTER" if self._query(f"SELECT 1 FROM pg_roles WHERE rolname = '{DATABASE}'") else "CREATE"
        self._query(f"{role} ROLE {DATABASE} LOGIN PASSWORD '{password}'", password)
        if not self._query(f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"):
            self._query(f"CREATE DATABASE {DATABASE} OWNER {DATABASE}")

    def address(self) -> str:
        return f"127.0.0.1:{self.state.port(self.name)}"

    def _query(self, statement: str, *secrets: str) -> str:
        """One statement as the administrator, given on stdin so that no password is in an argument list."""
        port = str(self.state.port(self.name))
        options = ("-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-h", str(self.directory), "-p", port)
        return self._as_postgres(
            program("psql"), *options, statement=statement, secrets=secrets
        ).stdout.strip()

    def _as_postgres(
        self, *argv: str, statement: str | None = None, secrets: tuple[str, ...] = ()
    ) -> Completed:
        return run([*AS_POSTGRES, *argv], timeout_s=120, input=statement, secrets=secrets, cwd="/")


def program(name: str) -> str:
    """Path of a PostgreSQL program; Debian keeps them out of PATH, one directory a major version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    if not found:
        raise EnvironmentFault(f"find {name}", "PostgreSQL is not installed", "run dev/install")
    return str(found[-1])
