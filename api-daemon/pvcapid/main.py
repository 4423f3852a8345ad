"""`pvc-api`: serves the API, brings the database up to date, keeps the tokens.

Exit code 0 when it worked, 1 when not (one line on stderr says what, why, and what to do), 2 for wrong usage.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import select

from pvccommon import __version__, tokens
from pvccommon.config import LOOPBACK, Config, load_config
from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault, PvcError
from pvccommon.models import ApiToken

Command = Callable[[Config, argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    command: Command = options.command
    try:
        command(load_config(getattr(options, "config", None)), options)
    except PvcError as exc:
        hint = f" (hint: {exc.hint})" if exc.hint else ""
        print(f"pvc-api: {exc.message}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", metavar="PATH", default=argparse.SUPPRESS, help="configuration file")
    parser = argparse.ArgumentParser("pvc-api", description="The REST API daemon.", parents=[shared])
    parser.add_argument("--version", action="version", version=f"pvc-api {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("serve", run_serve, "serve the API in the foreground"),
        ("migrate", run_migrate, "bring the database's schema up to date; safe to repeat"),
    ):
        commands.add_parser(name, help=text, parents=[shared]).set_defaults(command=command)
    token = commands.add_parser("token", help="keep API tokens").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = token.add_parser("create", help="make a token and print it, once", parents=[shared])
    create.add_argument("name")
    create.add_argument("--role", choices=tokens.ROLES, required=True)
    create.set_defaults(command=run_token_create)
    token.add_parser("list", help="list tokens", parents=[shared]).set_defaults(command=run_token_list)
    delete = token.add_parser("delete", help="delete a token", parents=[shared])
    delete.add_argument("name")
    delete.set_defaults(command=run_token_delete)
    return parser


def run_serve(config: Config, options: argparse.Namespace) -> None:
    """Serve, once everything that would fail later is known to work."""
    from pvcapid.app import create_app
    from pvcapid.server import serve

    check_exposure(config)
    with open_database(config) as database:
        database.require_migrated()
    create_app(config)  # raises when a secret cannot be read; workers make their own
    serve(config)


def run_migrate(config: Config, options: argparse.Namespace) -> None:
    with open_database(config) as database:
        database.migrate()


def run_token_create(config: Config, options: argparse.Namespace) -> None:
    with open_database(config) as database, database.session() as session:
        token = tokens.create_token(session, options.name, options.role)
    print(token)


def run_token_list(config: Config, options: argparse.Namespace) -> None:
    with open_database(config) as database, database.session() as session:
        for row in session.execute(select(ApiToken).order_by(ApiToken.name)).scalars():
            print(f"{row.name}\t{row.role}\t{row.created.isoformat(timespec='seconds')}")


def run_token_delete(config: Config, options: argparse.Namespace) -> None:
    with open_database(config) as database, database.session() as session:
        tokens.delete_token(session, options.name)


@contextmanager
def open_database(config: Config) -> Iterator[Database]:
    database = Database(config.database)
    try:
        yield database
    finally:
        database.close()


def check_exposure(config: Config) -> None:
    """The configuration refuses this already; it must not depend on one check alone."""
    settings = config.api.authentication
    if config.api.listen.address not in LOOPBACK and (not settings.enabled or settings.anonymous_role):
        raise EnvironmentFault(
            f"serve on {config.api.listen.address}",
            "callers without a token would be let in from other machines",
            "enable api.authentication, without anonymous_role",
        )


if __name__ == "__main__":
    sys.exit(main())
