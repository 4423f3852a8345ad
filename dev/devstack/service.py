"""What every service of the stack has in common: prepare, start, ask whether it serves, stop."""

import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from devstack import process
from devstack.process import Process
from devstack.state import State, numbered
from pvccommon.errors import EnvironmentFault, PvcError

TAIL_LINES = 20


@dataclass(frozen=True)
class Launch:
    """How a service is started; `env` is added to a minimal environment."""

    argv: Sequence[str]
    user: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class Service(ABC):
    """One process (with its children) of the stack, or of one of its nodes: the first, the second, …"""

    name: str  # of the first node's; the others' have their number behind it
    ready_timeout_s: ClassVar[float] = 30
    stop_timeout_s: ClassVar[float] = 15
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, state: State, node: int = 1) -> None:
        self.state = state
        self.node = node
        self.name = numbered(type(self).name, node)

    @abstractmethod
    def prepare(self) -> None:
        """Make what the service needs before it starts; keeps what is there."""

    @abstractmethod
    def launch(self) -> Launch: ...

    @abstractmethod
    def check_ready(self) -> None:
        """Ask the service itself; raises PvcError while it does not serve."""

    @abstractmethod
    def address(self) -> str:
        """For `status`: where it listens."""

    def after_start(self) -> None:
        """What is set up in the service once it serves; safe to repeat."""

    def before_stop(self) -> None:
        """What has to end before the service does."""

    @property
    def process(self) -> Process | None:
        found = Process.load_or_none(self.state.record(self.name))
        return found if found and found.alive else None

    def start(self) -> None:
        """Start the service and wait until it serves; nothing to do when it runs."""
        found_running = self.process is not None
        if not found_running:
            self._start_process()
        try:
            self.wait_ready()
        except EnvironmentFault:
            if not found_running or self.process:
                raise
            # It was dying when it was looked at, from a signal of a moment before.
            self._start_process()
            self.wait_ready()
        self.after_start()

    def _start_process(self) -> None:
        self._end_session()
        self.prepare()
        order = self.launch()
        log = self.state.log(self.name)
        new = process.start(order.argv, env=order.env, log=log, user=order.user, state=self.state.path)
        new.save(self.state.record(self.name))

    def wait_ready(self) -> None:
        """Raises EnvironmentFault with the end of the log when the service dies or does not serve in time."""
        deadline = time.monotonic() + self.ready_timeout_s
        while True:
            running = self.process is not None
            try:
                self.check_ready()
                return
            except PvcError as exc:
                reason = exc.message
                if not running:
                    raise self._failure("it ended") from exc
                if time.monotonic() > deadline:
                    raise self._failure(f"not ready after {self.ready_timeout_s:g} s ({reason})") from exc
            time.sleep(0.1)

    def stop(self) -> None:
        """End the service and whatever is left of its session; safe to repeat."""
        if self.process:
            self.before_stop()
        self._end_session()

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        try:
            with open(self.state.log(self.name), errors="replace") as file:
                return [line.rstrip("\n") for line in deque(file, lines)]
        except FileNotFoundError:
            return []

    def _end_session(self) -> None:
        """End the process and its children; the children alone when it was killed."""
        if found := Process.load_or_none(self.state.record(self.name)):
            process.end(found, first=self.stop_signal, timeout_s=self.stop_timeout_s)
        self.state.record(self.name).unlink(missing_ok=True)

    def _failure(self, why: str) -> EnvironmentFault:
        log = "".join(f"\n    {line}" for line in self.tail())
        where = self.state.log(self.name)
        return EnvironmentFault(f"start {self.name}", f"{why}; the end of {where}:{log or ' (empty)'}")
