"""How many requests may hold a thread of the server for long. Short ones need threads, too."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from pvccommon.errors import Busy


class LongRequests:
    """Of a process's threads, those who follow logs have half at most (a quarter for one token), transfers
    half at most, and both together three quarters.
    """

    def __init__(self, threads: int) -> None:
        self._most = max(1, threads // 2)
        self._most_of_one = max(1, threads // 4)
        self._most_together = max(1, threads - max(1, threads // 4))
        self._lock = threading.Lock()
        self._followers: Counter[str] = Counter()
        self._transfers = 0

    def follow(self, who: str) -> None:
        """Take a place until `end_follow`. Raises Busy."""
        with self._lock:
            of_all = self._followers.total()
            if self._followers[who] >= self._most_of_one or of_all >= self._most or self._is_full():
                raise Busy(
                    "follow a log", "too many are being followed already", "ask without `follow`, repeatedly"
                )
            self._followers[who] += 1

    def end_follow(self, who: str) -> None:
        with self._lock:
            self._followers[who] -= 1
            self._followers += Counter()  # drops those that follow nothing

    def begin_transfer(self, what: str) -> None:
        """Take a place until `end_transfer`. Raises Busy."""
        with self._lock:
            if self._transfers >= self._most or self._is_full():
                why = "as many uploads and downloads as the server takes are under way"
                raise Busy(what, why, "try again when one has ended, or raise api.threads")
            self._transfers += 1

    def end_transfer(self) -> None:
        with self._lock:
            self._transfers -= 1

    @contextlib.contextmanager
    def transfer(self, what: str) -> Iterator[None]:
        self.begin_transfer(what)
        try:
            yield
        finally:
            self.end_transfer()

    def _is_full(self) -> bool:
        return self._followers.total() + self._transfers >= self._most_together
