"""Commands that may take long, in threads of their own, so that short ones never wait behind them."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

THREADS = 4  # so many run at one time; more wait for their turn
logger = logging.getLogger("pvc.commands")


class SlowCommands:
    """Takes commands over from the Celery threads that received them, and stores their answers."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="slow command")

    def take_over(self, task: Any, verb: str, answer: Callable[[], Any]) -> None:
        """`task` is the bound Celery task. Its caller waits for the answer, no longer than it has said."""
        identity, expires = str(task.request.id), task.request.expires
        self._threads.submit(self._run, task.backend, identity, verb, expires, answer)

    @staticmethod
    def _run(backend: Any, identity: str, verb: str, expires: Any, answer: Callable[[], Any]) -> None:
        try:
            if is_over(expires):
                logger.warning("%s waited too long for its turn; it was not run", verb)
                return
            store_answer(backend, identity, answer())
        except Exception:
            logger.exception("the answer of %s could not be stored", verb)


def store_answer(backend: Any, identity: str, answer: Any) -> None:
    """What the caller of the task with this id gets; tasks themselves return nothing."""
    backend.store_result(identity, answer, "SUCCESS")


def is_over(expires: Any) -> bool:
    """Whether a message's time is up: its caller has gone away with an error."""
    if not expires:
        return False
    moment = datetime.fromisoformat(expires) if isinstance(expires, str) else expires
    return bool(datetime.now(UTC) > (moment if moment.tzinfo else moment.replace(tzinfo=UTC)))
