"""What all commands that move files have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pvc.errors import CliError, WrongInput


def opened(path: str) -> BinaryIO:
    try:
        file = open(path, "rb", buffering=0)
    except OSError as error:
        raise WrongInput(f"cannot read {path}", why=error.strerror or str(error)) from error
    if not file.seekable():
        file.close()
        raise WrongInput(f"cannot read {path}", why="its size must be known, and it is a pipe or terminal")
    return file


@contextmanager
def ended_by_ctrl_c(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise CliError(f"{what} was stopped", hint=hint, kind="interrupted") from None
