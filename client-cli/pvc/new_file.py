"""A file that appears under its name only when it is whole, with holes where it holds zeros."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pvc.errors import CliError, WrongInput

BLOCK_BYTES = 4096
ZEROS = bytes(BLOCK_BYTES)
BUFFER_BYTES = 1 << 20


class SparseWriter:
    """Writes one after the other; blocks of zeros become holes. `finish` gives the file its length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hole_bytes = 0

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            if block == ZEROS:
                self._hole_bytes += BLOCK_BYTES
            else:
                self._skip()
                self._file.write(block)

    def finish(self) -> None:
        self._skip()
        self._file.truncate()

    def _skip(self) -> None:
        if self._hole_bytes:
            self._file.seek(self._hole_bytes, os.SEEK_CUR)
            self._hole_bytes = 0


@contextmanager
def new_file(path: str, *, force: bool) -> Iterator[SparseWriter]:
    """Write a file under a temporary name beside `path`, and rename it at the end of the block.

    An exception, also Ctrl-C, removes it. Raises WrongInput for a path that cannot be used, CliError of kind
    `exists` unless `force` allows to replace a file there, `no-space`, `environment`.
    """
    target = Path(path).resolve()
    check_target(target, path, force=force)
    part = target.with_name(f".pvc-download-{secrets.token_hex(6)}")
    try:
        with open(part, "xb", buffering=BUFFER_BYTES) as file:
            writer = SparseWriter(file)
            yield writer
            writer.finish()
        check_target(target, path, force=force)
        part.replace(target)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def check_target(target: Path, path: str, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise WrongInput(f"cannot write {path}", why=f"there is no directory {target.parent}")
    if target.exists() and not target.is_file():
        raise WrongInput(
            f"cannot write {path}",
            why="there is something that is no regular file",
            hint="for a device or a pipe write `-` and redirect standard output",
        )
    if target.exists() and not force:
        raise CliError(f"{path} exists", hint="--force replaces it", kind="exists")


def not_written(path: str, error: OSError) -> CliError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = error.strerror or str(error)
    return CliError(f"cannot write {path}", why=why, kind="no-space" if full else "environment")
