"""The connection to PostgreSQL, and the state of its schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from pvccommon.config import Database as DatabaseConfig
from pvccommon.config import read_secret
from pvccommon.errors import EnvironmentFault

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

CONNECT_TIMEOUT_S = 5


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
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
        )
        self._sessions = sessionmaker(self.engine, future=True, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back on any exception.

        Raises EnvironmentFault when the server does not answer.
        """
        try:
            with self._sessions() as session, session.begin():
                yield session
        except OperationalError as exc:
            reason = str(exc.orig).strip().splitlines()[0] if exc.orig else str(exc)
            where = f"{self._config.host}:{self._config.port}"
            raise EnvironmentFault(f"use the database at {where}", reason, "is PostgreSQL running?") from exc

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


def _alembic_config() -> "AlembicConfig":
    from alembic.config import Config as AlembicConfig

    configuration = AlembicConfig()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return configuration
