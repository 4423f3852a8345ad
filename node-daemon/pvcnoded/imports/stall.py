"""Notices a program that does nothing while everybody waits for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

TICK_S: Final = 1.0


class Stall:
    """Those who move bytes to and from the program tell here when they do something else.

    While such a one waits for the source of an upload, or for the pool, the program may rest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._elsewhere = 0
        self._moves = 0

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What the program has to do with is done; afterwards it has its turn again."""
        with self._lock:
            self._elsewhere += 1
        try:
            yield
        finally:
            with self._lock:
                self._elsewhere -= 1
                self._moves += 1

    def look(self) -> tuple[int, bool]:
        """(how often something has moved, whether it is the program's turn)."""
        with self._lock:
            return self._moves, self._elsewhere == 0


@contextmanager
def watched(limit_s: float, on_stall: Callable[[], None], tick_s: float = TICK_S) -> Iterator[Stall]:
    """Calls `on_stall` once when the program has done nothing for so long, from a thread of its own.

    Ticks are counted, not the clock: a daemon that was itself stopped for a while blames nobody.
    """
    stall, over = Stall(), threading.Event()

    def watch() -> None:
        seen, quiet_s = -1, 0.0
        while not over.wait(tick_s):
            moves, has_turn = stall.look()
            quiet_s = quiet_s + tick_s if has_turn and moves == seen else 0.0
            seen = moves
            if quiet_s >= limit_s:
                on_stall()
                return

    thread = threading.Thread(target=watch, name="stall", daemon=True)
    thread.start()
    try:
        yield stall
    finally:
        over.set()
        thread.join()
