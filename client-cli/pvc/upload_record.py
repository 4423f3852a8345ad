"""What is remembered of an upload under way, so that the same command continues it after a crash.

A file for each image name under `uploads/` beside the connections. It is locked while the upload runs, and
removed when the upload has ended one way or the other.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pvc.context import Context
from pvc.errors import CliError

MAX_BYTES = 64 * 1024


class UploadRecord:
    """What is remembered of one upload; `content` is empty when there is nothing."""

    def __init__(self, path: Path, file: TextIO | None) -> None:
        self._path = path
        self._file = file
        self.content: dict[str, Any] = self._read()

    def remember(self, content: dict[str, Any]) -> None:
        self.content = content
        self._write(json.dumps(content))

    def forget(self) -> None:
        self.content = {}
        self._write("")

    def _read(self) -> dict[str, Any]:
        """A record that was half written by a crash counts as none."""
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read(MAX_BYTES) or "{}")
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise CliError(
                f"cannot write {self._path}", why=error.strerror or str(error), kind="environment"
            ) from error


@contextmanager
def upload_record(context: Context, folder: Path, url: str, name: str) -> Iterator[UploadRecord]:
    """The record of the upload of one image to one API, for the only process that may change it.

    Raises CliError of kind `busy-retry` when another process has it. Where no file can be written, the upload
    is not remembered, and the operator is told.
    """
    path = folder / (hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()[:32] + ".json")
    try:
        file = locked(path)
    except BlockingIOError:
        raise CliError(
            f"another pvc of yours uploads the image {name!r} at this moment", kind="busy-retry"
        ) from None
    except OSError as error:
        context.note(f"the upload cannot be continued by another run: {error}")
        yield UploadRecord(path, None)
        return
    with file:
        record = UploadRecord(path, file)
        try:
            yield record
        finally:
            if not record.content:
                path.unlink(missing_ok=True)


def locked(path: Path) -> TextIO:
    """The file, made if need be, locked. Raises BlockingIOError when it is locked already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, its last user may have removed it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
