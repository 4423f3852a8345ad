"""The connection to PostgreSQL, and the state of its schema."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import create_engine, func, select
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from pvccommon.config import Database as DatabaseConfig
from pvccommon.config import read_secret
from pvccommon.errors import EnvironmentFault

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

CONNECT_TIMEOUT_S = 5
# The server ends a transaction nobody goes on with, so that a machine that froze keeps no rows locked.
IDLE_TRANSACTION_S = 60
# Shorter than the lease of a build, which must not be worked on without it.
PATIENCE_S = 30.0
PAUSE_S = 0.2
Answer = TypeVar("Answer")


class DatabaseSilent(EnvironmentFault):
    """The server did not answer, or went away in the middle; whether a commit arrived is not known."""


class Database:
    """Sessions on one engine. Connections are made when first needed and checked before use, so that a
    restarted PostgreSQL is not noticed."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self.engine: Engine = create_engine(
            URL.create(
                "postgresql+psycopg2",
                username=config.user,
                password=read_secret(config.password_file),
                host=config.host,
                port=config.port,
                database=config.name,
            ),
            future=True,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=20,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "options": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_S}s",
            },
        )
        self._sessions = sessionmaker(self.engine, future=True, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back on any exception.

        Raises DatabaseSilent when the server does not answer.
        """
        try:
            with self._sessions() as session, session.begin():
                yield session
        except (OperationalError, InterfaceError) as exc:
            reason = str(exc.orig).strip().splitlines()[0] if exc.orig else str(exc)
            where = f"{self._config.host}:{self._config.port}"
            raise DatabaseSilent(f"use the database at {where}", reason, "is PostgreSQL running?") from exc

    def patiently(self, action: Callable[[Session], Answer], patience_s: float = PATIENCE_S) -> Answer:
        """What an action answers in a transaction of its own; tried again while the server is silent.

        The action must be safe to repeat, because its transaction may have been committed before the
        connection broke. Raises DatabaseSilent at the end of the patience.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with self.session() as session:
                    return action(session)
            except DatabaseSilent:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_S)

    def close(self) -> None:
        self.engine.dispose()

    def migrate(self) -> None:
        """Bring the schema to the version of this program; safe to repeat."""
        from alembic import command  # only here: a build's process should not pay for loading Alembic

        with self.engine.begin() as connection:
            configuration = _alembic_config()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")

    def require_migrated(self) -> None:
        """Raise EnvironmentFault unless the schema is the one this program was written for."""
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        try:
            with self.engine.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
        except OperationalError as exc:
            raise EnvironmentFault(
                "use the database", str(exc.orig).strip(), "is PostgreSQL running?"
            ) from exc
        wanted = ScriptDirectory.from_config(_alembic_config()).get_current_head()
        if current != wanted:
            raise EnvironmentFault(
                f"use database {self._config.name}",
                f"its schema is at version {current or 'none'}, this program needs {wanted}",
                "run: pvc-api migrate",
            )


def database_now(session: Session) -> datetime:
    """The time of the database's clock at this moment.

    What machines compare with each other (leases, heartbeats) is told by this clock: theirs may differ.
    """
    moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return moment


def _alembic_config() -> "AlembicConfig":
    from alembic.config import Config as AlembicConfig

    configuration = AlembicConfig()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return configuration
