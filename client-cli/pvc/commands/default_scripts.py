"""`pvc provisioner script install-defaults`: builders that come with the packages, as scripts on a server.

Nothing is remembered here. The file SHA256SUMS beside the builders has the sum of every version that was ever
part of the product: so a script on the server is one of ours, older, or one that somebody has changed.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from pvc.commands.document import read_document
from pvc.completion import script_names
from pvc.context import Context, pass_context
from pvc.errors import CliError, WrongInput
from pvc.options import format_option
from pvc.output import Column, Table, show_list

SUMS: Final = "SHA256SUMS"
PACKAGED: Final = Path("/usr/share/pvc/builders")
# In a checkout, beside the client's own directory.
CHECKOUT: Final = Path(__file__).resolve().parents[3] / "provisioner-scripts" / "builders"

INSTALLED, UPDATED, OVERWRITTEN = "installed", "updated", "overwritten"
UP_TO_DATE, KEPT = "up to date", "kept"

TABLE: Final = Table(
    columns=(Column("script", "name"), Column("outcome", "outcome"), Column("reason", "reason")),
    empty="there are no builders in the directory",
)


@dataclass(frozen=True)
class Builder:
    """A builder that comes with the packages; `earlier` are the SHA-256 of what it once was."""

    name: str
    text: str
    earlier: Collection[str]


def read_builders(directory: Path) -> list[Builder]:
    """All builders of a directory, by name."""
    sums = read_sums(directory / SUMS)
    files = sorted(directory.glob("*.py"))
    return [Builder(path.stem, read_document(str(path)), sums.get(path.name, ())) for path in files]


def read_sums(path: Path) -> Mapping[str, list[str]]:
    """File name to sums, oldest first; nothing when there is no such file."""
    found: dict[str, list[str]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            digest, _, name = line.partition("  ")
            found.setdefault(name, []).append(digest)
    return found


def outcome_for(builder: Builder, stored: str | None, *, force: bool) -> tuple[str, str]:
    """What has to be done for a builder, and why. `stored` is the server's text, None when it has none."""
    if stored is None:
        return INSTALLED, ""
    if stored == builder.text:
        return UP_TO_DATE, ""
    if hashlib.sha256(stored.encode()).hexdigest() in builder.earlier:
        return UPDATED, "it was an earlier version"
    if force:
        return OVERWRITTEN, "--force; it had been changed on the server"
    return KEPT, f"changed on the server; --force {builder.name} overwrites it"


@click.command("install-defaults")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help=f"Where the builders are; default: {PACKAGED}.",
)
@click.option(
    "--force",
    metavar="NAME",
    multiple=True,
    shell_complete=script_names,
    help="Overwrite this changed script.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing, only show what would be done.")
@format_option
@pass_context
def install_defaults(
    context: Context,
    names: tuple[str, ...],
    directory: Path | None,
    force: tuple[str, ...],
    dry_run: bool,
    form: str,
) -> None:
    """Store the builders that come with the packages as scripts, all or those named.

    A script that is an earlier version is updated. One that was changed on the server stays, unless
    --force names it.
    """
    builders = wanted_builders(directory or builders_directory(), names, force)
    known = {str(row.get("name")) for row in context.client.get_list("provisioner", "script")}
    rows = []
    for builder in builders:
        stored = stored_text(context, builder.name) if builder.name in known else None
        outcome, reason = outcome_for(builder, stored, force=builder.name in force)
        if not dry_run:
            store(context, builder, outcome)
        rows.append({"name": builder.name, "outcome": outcome, "reason": reason})
    show_list(context, TABLE, rows, form)


def builders_directory() -> Path:
    """Where the builders are on this machine; raises CliError."""
    for place in (PACKAGED, CHECKOUT):
        if place.is_dir():
            return place
    raise CliError(
        "there are no builders on this machine",
        why=f"{PACKAGED} does not exist",
        hint="install the package pvc-provisioner-scripts, or give --directory",
        kind="not-found",
    )


def wanted_builders(directory: Path, names: Collection[str], force: Collection[str]) -> list[Builder]:
    """The builders to look at; raises WrongInput for a name that is none of them."""
    found = read_builders(directory)
    unknown = sorted({*names, *force} - {builder.name for builder in found})
    if unknown:
        known = ", ".join(builder.name for builder in found) or "none"
        raise WrongInput(f"there is no builder {', '.join(unknown)}", why=f"{directory} has: {known}")
    chosen = {*names, *force} if names else {builder.name for builder in found}
    return [builder for builder in found if builder.name in chosen]


def stored_text(context: Context, name: str) -> str:
    """A script's text as the server has it."""
    return str(context.client.get_one("provisioner", "script", name).get("script") or "")


def store(context: Context, builder: Builder, outcome: str) -> None:
    """Do on the server what the outcome says."""
    if outcome == INSTALLED:
        context.client.post("provisioner", "script", form={"name": builder.name, "data": builder.text})
    elif outcome in (UPDATED, OVERWRITTEN):
        context.client.put("provisioner", "script", builder.name, form={"data": builder.text})
