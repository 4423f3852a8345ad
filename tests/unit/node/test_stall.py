"""A program that does nothing is noticed, one that rests while others are waited for is not."""

import threading
import time

from pvcnoded.imports.stall import watched

LIMIT_S = 0.2
TICK_S = 0.02


def test_nothing_done_is_noticed_once() -> None:
    noticed: list[float] = []
    with watched(LIMIT_S, lambda: noticed.append(time.monotonic()), TICK_S):
        started = time.monotonic()
        while not noticed and time.monotonic() - started < 10:
            time.sleep(TICK_S)
        time.sleep(2 * LIMIT_S)
    assert len(noticed) == 1
    assert noticed[0] - started > LIMIT_S / 2


def test_each_move_counts_from_anew() -> None:
    noticed = threading.Event()
    with watched(LIMIT_S * 5, noticed.set, TICK_S) as stall:
        for _ in range(40):
            with stall.elsewhere():
                pass
            time.sleep(LIMIT_S / 4)
    assert not noticed.is_set()


def test_others_may_take_their_time() -> None:
    noticed = threading.Event()
    with watched(LIMIT_S, noticed.set, TICK_S) as stall:
        with stall.elsewhere():
            time.sleep(3 * LIMIT_S)
        assert not noticed.is_set()
        assert noticed.wait(10), "then it has its turn"


def test_its_end_is_the_end_of_the_watch() -> None:
    before = threading.active_count()
    with watched(LIMIT_S, lambda: None, TICK_S):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
