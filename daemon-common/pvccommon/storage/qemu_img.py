"""qemu-img, one function per subcommand. Formats and backing chains are always given, never guessed."""

import json
import os
from collections.abc import Sequence
from typing import Any

from pvccommon.run import LogLine, run
from pvccommon.storage.faults import qemu_errors
from pvccommon.storage.pool import BackingFile, Format

QUICK_S = 60.0
COPY_S = 6 * 3600.0


def create(path: str, image_format: Format, size_bytes: int, *, backing: BackingFile | None = None) -> None:
    """Make an image. Its backing file is not opened; a relative path counts from the image's directory."""
    options = ["-b", backing.path, "-F", backing.format, "-u"] if backing else []
    _qemu_img(f"create image {path}", ["create", "-q", "-f", image_format, *options, path, str(size_bytes)])


def resize(source: Sequence[BackingFile], size_bytes: int) -> None:
    """Grow an image, given with its whole chain from the top down. Raises Busy when it is in use."""
    name = json_name(chain(source, writable=True))
    _qemu_img(f"resize image {source[0].path}", ["resize", "-q", name, str(size_bytes)])


def convert(
    source: Sequence[BackingFile], target: str, image_format: Format, *, log: LogLine | None = None
) -> None:
    """Copy an image, given with its whole chain from the top down, into a new sparse one that stands alone.

    Does not look at the source's locks: the caller holds them.
    """
    name = json_name(chain(source, force_share=True))
    _qemu_img(
        f"copy image {source[0].path}",
        ["convert", "-q", "-O", image_format, name, target],
        timeout_s=COPY_S,
        log=log,
    )


def chain(
    files: Sequence[BackingFile], *, writable: bool = False, force_share: bool = False
) -> dict[str, Any]:
    """QEMU's description of an image and everything below it: the names in its headers are not believed."""
    top, *below = files
    common = {"read-only": not writable, "discard": "unmap", "force-share": force_share}
    node: dict[str, Any] = {
        **common,
        "driver": top.format,
        "file": {**common, "driver": "file", "filename": top.path},
    }
    if top.format == "qcow2":
        node["backing"] = chain(below, force_share=force_share) if below else None
    return node


def json_name(node: dict[str, Any]) -> str:
    """A description as an image name."""
    return "json:" + json.dumps(node)


def _qemu_img(
    what: str, arguments: Sequence[str], *, timeout_s: float = QUICK_S, log: LogLine | None = None
) -> None:
    with qemu_errors(what):
        run(["qemu-img", *map(os.fspath, arguments)], timeout_s=timeout_s, log=log)
