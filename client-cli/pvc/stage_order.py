"""Puts log lines and ends of stages in order: the end of a stage after its last line, before the next one's.

Lines and states come by different ways, so that a line may be here before the state which knows its stage.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pvc.tasks import Happening, LogLine, Task, is_finished


@dataclass(frozen=True)
class StageEnd:
    """A stage is over; `seconds` is the server's own measure."""

    stage: str
    seconds: float | None
    failed: bool


Shown = LogLine | StageEnd


class StageOrder:
    """Takes what happens, gives what is to be shown."""

    def __init__(self) -> None:
        self._task: Task = {}
        self._stages: list[Mapping[str, Any]] = []
        self._told = 0
        self._held: list[LogLine] = []
        # How many of the held lines have seen a state that did not know their stage.
        self._overdue = 0

    def take(self, happening: Happening) -> Iterator[Shown]:
        """What can be shown now. A line of a stage nobody knows waits for two states at most."""
        if isinstance(happening, LogLine):
            self._held.append(happening)
            if len(self._held) == 1 and self._knows(happening.stage):
                yield from self._release(1)
            return
        self._task = happening.task
        self._stages = stages_of(happening.task)
        ready = self._overdue
        while ready < len(self._held) and self._knows(self._held[ready].stage):
            ready += 1
        yield from self._release(ready)
        self._overdue = len(self._held)
        if not self._held:
            yield from self._ends(len(self._stages))

    def rest(self) -> Iterator[Shown]:
        """What still waits when nothing more will happen."""
        yield from self._release(len(self._held))

    def _release(self, count: int) -> Iterator[Shown]:
        lines, self._held = self._held[:count], self._held[count:]
        for line in lines:
            yield from self._ends(self._place(line.stage))
            yield line

    def _ends(self, limit: int) -> Iterator[StageEnd]:
        """Ends not told yet of the first `limit` stages."""
        while self._told < limit and self._stages[self._told].get("finished"):
            yield stage_end(self._stages[self._told], self._task)
            self._told += 1

    def _knows(self, stage: str) -> bool:
        """Whether nothing is to come that belongs before a line of this stage."""
        if not self._task:
            return False
        if is_finished(self._task) or self._task.get("build_state") == "undoing":
            return True
        # A server that knows no stages has no key for them; a build that waits has an empty list.
        return "stages" not in self._task or any(known.get("stage") == stage for known in self._stages)

    def _place(self, stage: str) -> int:
        """Which of the stages it is; the number of all for one that is none of them."""
        names = [known.get("stage") for known in self._stages]
        return names.index(stage) if stage in names else len(names)


def stages_of(task: Task) -> list[Mapping[str, Any]]:
    return [stage for stage in task.get("stages") or [] if isinstance(stage, dict)]


def stage_end(stage: Mapping[str, Any], task: Task) -> StageEnd:
    name, seconds, error = str(stage.get("stage") or "-"), stage.get("seconds"), task.get("error")
    return StageEnd(
        stage=name,
        seconds=seconds if isinstance(seconds, (int, float)) else None,
        failed=isinstance(error, dict) and error.get("stage") == name,
    )
