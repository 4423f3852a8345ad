"""Files from outside, known by their SHA-256."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from vmbuilder.errors import ProvisioningError, ValidationError

_CHUNK_BYTES: Final = 1024 * 1024
_TIMEOUT_S: Final = 60


@contextmanager
def opened(place: str, sha256: str, *, limit_bytes: int) -> Iterator[BinaryIO]:
    """The file at a path or an http(s) URL, checked and ready to be read from its beginning.

    Raises ValidationError when it is not there, too long, or another file than the sum says;
    ProvisioningError when the transfer fails. The copy of a download vanishes at the end.
    """
    with _local(place) if place.startswith("/") else _fetched(place, limit_bytes) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size > limit_bytes:
            raise ValidationError(f"{place}: {size} bytes are more than the {limit_bytes} allowed")
        stream.seek(0)
        found = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
        if found.hexdigest() != sha256.lower():
            raise ValidationError(f"{place}: its SHA-256 is {found.hexdigest()}, not {sha256}")
        stream.seek(0)
        yield stream


def require(place: str) -> None:
    """Raise ValidationError when the place is a path that cannot be read; a URL is not asked."""
    if place.startswith("/"):
        with _local(place):
            pass


@contextmanager
def _local(path: str) -> Iterator[BinaryIO]:
    try:
        stream = open(path, "rb")
    except OSError as exc:
        hint = "directories such as /srv, /home, /root and /tmp are hidden, see docs/security.md"
        raise ValidationError(f"{path}: {exc.strerror} ({hint})") from exc
    with stream:
        yield stream


@contextmanager
def _fetched(url: str, limit_bytes: int) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as copy:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                while chunk := answer.read(_CHUNK_BYTES):
                    copy.write(chunk)
                    if copy.tell() > limit_bytes:
                        raise ValidationError(f"{url}: longer than the {limit_bytes} bytes allowed")
        except (OSError, ValueError) as exc:
            reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            raise ProvisioningError(f"cannot fetch {url}: {reason}") from exc
        yield copy
