"""The program `pvc`: global options, the command tree, and the place where errors become exit codes."""

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pvc.commands.cluster import cluster
from pvc.commands.completion import completion
from pvc.commands.connection import connection
from pvc.commands.node import node
from pvc.commands.provisioner import provisioner
from pvc.commands.storage import storage
from pvc.commands.vm import vm
from pvc.completion import connection_names
from pvc.context import Context
from pvc.errors import EXIT_CODES, CliError
from pvc.version import VERSION

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(name="pvc", context_settings=SETTINGS)
@click.option(
    "-c",
    "--connection",
    envvar="PVC_CONNECTION",
    metavar="NAME",
    shell_complete=connection_names,
    help="The cluster to talk to, a name of `pvc connection list`. "
    "Default: PVC_API_URL with PVC_API_KEY, else `local`.",
)
@click.option(
    "--config",
    envvar="PVC_CONFIG",
    metavar="PATH",
    help="The cluster configuration behind the connection `local`.",
)
@click.option(
    "-v", "--debug", envvar="PVC_DEBUG", is_flag=True, help="Print requests, codes and headers on stderr."
)
@click.option("-q", "--quiet", envvar="PVC_QUIET", is_flag=True, help="Print nothing on stderr.")
@click.option("-s", "--silent", envvar="PVC_SILENT", is_flag=True, help="Print nothing at all.")
@click.option(
    "-u", "--unsafe", envvar="PVC_UNSAFE", is_flag=True, help="Ask no questions: everything is confirmed."
)
@click.option(
    "--colour/--no-colour",
    "--color/--no-color",
    envvar="PVC_COLOUR",
    default=None,
    help="Colours always or never; by default on terminals only.",
)
@click.version_option(VERSION, prog_name="pvc", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    connection: str | None,
    config: str | None,
    debug: bool,
    quiet: bool,
    silent: bool,
    unsafe: bool,
    colour: bool | None,
) -> None:
    """Provision and run virtual machines.

    The options below have environment variables, too: PVC_ and the name, such as PVC_CONNECTION or PVC_DEBUG.
    """
    context = ctx.ensure_object(Context)
    context.connection_name = connection
    context.connection_is_explicit = ctx.get_parameter_source("connection") is ParameterSource.COMMANDLINE
    context.config = config
    context.debug, context.quiet, context.silent = debug, quiet, silent
    context.unsafe, context.colour = unsafe, colour


for group in (connection, provisioner, cluster, vm, node, storage, completion):
    cli.add_command(group)


def run(arguments: Sequence[str], transport: "BaseAdapter | None" = None) -> int:
    """Run one command line and return its exit code. `transport` stands in for the network (tests)."""
    forgive_odd_text()
    context = Context(transport=transport)
    try:
        result = cli.main(list(arguments), prog_name="pvc", standalone_mode=False, obj=context)
    except CliError as error:
        context.error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_CODES["wrong-input"]
    except (click.Abort, KeyboardInterrupt):
        context.error(CliError("interrupted"))
        return EXIT_CODES["interrupted"]
    except Exception as error:
        context.error(defect(error))
        if context.debug:
            raise
        return EXIT_CODES["internal"]
    finally:
        context.close()
    return result if isinstance(result, int) else 0


def forgive_odd_text() -> None:
    """Texts of strangers may hold what the terminal's encoding, or any, cannot say: show its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def defect(error: Exception) -> CliError:
    """What is shown for an exception that nobody expected."""
    return CliError(
        f"defect in pvc {VERSION}",
        why=f"{type(error).__name__}: {error}",
        hint="`pvc -v …` shows where; please report it",
    )


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
