"""Runs of data as one raw stream: what `StoragePool.import_stream` takes."""

from collections.abc import Iterator
from typing import Final

ZEROS: Final = bytes(1024 * 1024)


class RawStream:
    """Exactly `size_bytes`: the runs, ascending and not overlapping, and zeros between and after them."""

    def __init__(self, runs: Iterator[tuple[int, bytes | memoryview]], size_bytes: int) -> None:
        self._runs = runs
        self._size_bytes = size_bytes
        self._position = 0
        self._start = 0
        self._data = b""
        self._ended = False

    def read(self, length: int, /) -> bytes:
        """The next bytes, maybe fewer than asked for; empty only after the runs have ended, too."""
        while not self._ended and self._position >= self._start + len(self._data):
            self._start, data = next(self._runs, (self._size_bytes, b""))
            self._data = bytes(data)
            self._ended = not self._data
        if self._position >= self._size_bytes:
            return b""
        if self._position < self._start:
            piece = ZEROS[: min(length, self._start - self._position)]
        else:
            offset = self._position - self._start
            piece = self._data[offset : offset + length]
        self._position += len(piece)
        return piece
