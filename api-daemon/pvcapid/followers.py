"""How many may follow logs at one time. Each occupies a thread of the server, which others need, too."""

import threading
from collections import Counter

from pvccommon.errors import Busy


class Followers:
    """Half of a process's threads at most, and a quarter for one token."""

    def __init__(self, threads: int) -> None:
        self._most = max(1, threads // 2)
        self._most_of_one = max(1, threads // 4)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def enter(self, who: str) -> None:
        """Take a place until `leave`. Raises Busy."""
        with self._lock:
            if self._counts[who] >= self._most_of_one or self._counts.total() >= self._most:
                raise Busy(
                    "follow a log", "too many are being followed already", "ask without `follow`, repeatedly"
                )
            self._counts[who] += 1

    def leave(self, who: str) -> None:
        with self._lock:
            self._counts[who] -= 1
            self._counts += Counter()  # drops those that follow nothing
