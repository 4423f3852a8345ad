"""`pvc storage volume upload` and `download`: the content of volumes, to and from files."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import click

from pvc.client import Params
from pvc.commands.file_transfer import ended_by_ctrl_c, opened
from pvc.commands.resource import show_message
from pvc.completion import pool_names, volume_names
from pvc.context import Context, pass_context
from pvc.errors import WrongInput
from pvc.multipart import FileBody, size_of
from pvc.new_file import new_file, not_written
from pvc.options import node_option
from pvc.output import size_text
from pvc.transfer_progress import transfer_display

PATH = ("storage", "ceph", "volume")
QCOW2_MAGIC = b"QFI\xfb"
IMAGE_FORMATS = ("raw", "qcow2", "vmdk", "qed", "vdi", "vpc")


@click.command()
@click.argument("pool", shell_complete=pool_names)
@click.argument("name", shell_complete=volume_names)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "-f",
    "--format",
    "image_format",
    type=click.Choice(IMAGE_FORMATS),
    default="raw",
    show_default=True,
    help="The format of FILE; it is never guessed.",
)
@node_option
@pass_context
def upload(context: Context, pool: str, name: str, file: str, image_format: str, node: str | None) -> None:
    """Fill the volume NAME of POOL from FILE.

    A volume that does not exist is created, as large as the file or, in other formats, its disk.
    """
    client = context.client
    with opened(file) as source:
        if image_format == "raw" and source.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC:
            context.note(f"{file} begins like a qcow2 image, which `-f qcow2` converts; storing it as it is")
        size_bytes = size_of(source)
        query: Params = {"image_format": image_format, "file_size": size_bytes, "node": node}
        with (
            ended_by_ctrl_c(f"the upload to {pool}/{name}", show_what_is_there(pool, name)),
            transfer_display(context, f"uploading {file}", size_bytes) as display,
        ):
            wait_text = f"waiting for the server to {'store' if image_format == 'raw' else 'convert'} it"
            body = FileBody(source, advance=display.advance, sent=lambda: display.wait(wait_text))
            reply = client.upload(*PATH, pool, name, "upload", body=body, query=query)
    show_message(context, reply)


def show_what_is_there(pool: str, name: str) -> str:
    return f"`pvc storage volume info {pool} {name}` shows what is there"


@click.command()
@click.argument("pool", shell_complete=pool_names)
@click.argument("name", shell_complete=volume_names)
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--force", is_flag=True, help="Replace FILE when it exists.")
@node_option
@pass_context
def download(context: Context, pool: str, name: str, file: str, force: bool, node: str | None) -> None:
    """Write the content of the volume NAME of POOL to FILE (`-`: standard output).

    FILE becomes a raw image with holes where the volume holds zeros. It appears when it is whole.
    """
    client = context.client
    with (
        ended_by_ctrl_c(f"the download of {pool}/{name}"),
        destination(file, force=force) as write,
        client.download(*PATH, pool, name, "download", query={"node": node}) as content,
        transfer_display(context, f"downloading {pool}/{name}", content.size_bytes) as display,
    ):
        for chunk in content.chunks:
            write(chunk)
            display.advance(len(chunk))
    if file != "-":
        context.out(f"Wrote {size_text(content.size_bytes)} to {file}.")


Write = Callable[[bytes], object]


def destination(path: str, *, force: bool) -> AbstractContextManager[Write]:
    return standard_output() if path == "-" else file_writer(path, force=force)


@contextmanager
def file_writer(path: str, *, force: bool) -> Iterator[Write]:
    with new_file(path, force=force) as file:
        yield file.write


@contextmanager
def standard_output() -> Iterator[Write]:
    if sys.stdout.isatty():
        raise WrongInput("standard output is a terminal", hint="redirect it to a file or a program")
    try:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
    except OSError as error:
        raise not_written("standard output", error) from error
