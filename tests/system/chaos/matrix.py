"""Which cells there are, what came of them, and how that is shown."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos.faults import FAULTS
from chaos.points import Point
from devstack.state import PoolKind

# How a cell can end. The first three are survival.
SUCCEEDED, FAILED, NOTHING = "succeeded", "failed with a reason", "nothing to strike"
LATE, LEAKED, BROKEN = "not ended in time", "leaked", "the stack is broken"
LETTERS = {SUCCEEDED: "s", FAILED: "f", NOTHING: ".", LATE: "T", LEAKED: "L", BROKEN: "!"}
SURVIVED = (SUCCEEDED, FAILED)


@dataclass(frozen=True)
class Cell:
    """One build of the matrix."""

    builder: str
    pool: PoolKind
    point: Point
    fault: str

    def __str__(self) -> str:
        return f"{self.builder} on {self.pool}, at {self.point.name}: {self.fault}"


@dataclass(frozen=True)
class Result:
    """What came of a cell. `why` is the build's own error; `left` and `log` are for bad ends."""

    outcome: str
    seconds: float
    why: str = ""
    left: Mapping[str, Sequence[str]] = field(default_factory=dict)
    log: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in (*SURVIVED, NOTHING)


def faults_of(builder: str, pool: PoolKind) -> Iterator[str]:
    """Every builder meets every fault; only the quickest meets them over both kinds of pool.

    debootstrap writes most, and meets over Ceph what can stop a write.
    """
    for name, fault in FAULTS.items():
        if pool not in fault.pools:
            continue
        if builder == "noop" or pool == pool_of(builder, name):
            yield name


def pool_of(builder: str, fault: str) -> PoolKind:
    if builder == "debootstrap" and fault not in ("osd", "pool full"):
        return "directory"
    return "ceph"


def cells_of(builder: str, pool: PoolKind, points: Sequence[Point]) -> list[Cell]:
    """Point by point, so that a matrix that is stopped early has whole rows."""
    faults = list(faults_of(builder, pool))
    return [Cell(builder, pool, point, fault) for point in points for fault in faults]


class Record:
    """Results by cell, kept in a file after each, so that a long run can be taken up again."""

    def __init__(self, path: Path | None = None, *, resume: bool = False) -> None:
        self._path = path
        self.results: dict[str, Result] = {}
        self.cells: dict[str, Cell] = {}
        if resume and path is not None and path.exists():
            for entry in json.loads(path.read_text()):
                cell = Cell(**{**entry["cell"], "point": Point(**entry["cell"]["point"])})
                self.add(cell, Result(**entry["result"]), save=False)

    def __contains__(self, cell: Cell) -> bool:
        return str(cell) in self.results

    def add(self, cell: Cell, result: Result, *, save: bool = True) -> None:
        self.cells[str(cell)], self.results[str(cell)] = cell, result
        if save and self._path is not None:
            entries = [
                {"cell": asdict(self.cells[name]), "result": asdict(result)}
                for name, result in self.results.items()
            ]
            self._path.parent.mkdir(exist_ok=True)
            self._path.write_text(json.dumps(entries, indent=1))

    def bad(self) -> list[str]:
        return [name for name, result in self.results.items() if not result.is_good]

    def show(self) -> str:
        """The pictures, the legend and the sums."""
        groups = list(dict.fromkeys((cell.builder, cell.pool) for cell in self.cells.values()))
        parts = [self._picture(builder, pool) for builder, pool in groups]
        legend = ", ".join(f"{letter} {outcome}" for outcome, letter in LETTERS.items())
        return "\n\n".join([*parts, legend, self._sums(groups)])

    def _picture(self, builder: str, pool: PoolKind) -> str:
        """Rows are points, columns faults, a character a cell."""
        mine = {n: c for n, c in self.cells.items() if (c.builder, c.pool) == (builder, pool)}
        points = list(dict.fromkeys(cell.point for cell in mine.values()))
        faults = [name for name in FAULTS if any(cell.fault == name for cell in mine.values())]
        width = max(len(point.name) for point in points)
        lines = [f"{builder} on {pool}", *_headings(faults, width)]
        for point in points:
            letters = [self._letter(Cell(builder, pool, point, fault)) for fault in faults]
            lines.append(f"{point.name:<{width}}  " + " ".join(letters))
        return "\n".join(lines)

    def _letter(self, cell: Cell) -> str:
        result = self.results.get(str(cell))
        return " " if result is None else LETTERS[result.outcome]

    def _sums(self, groups: Iterable[tuple[str, PoolKind]]) -> str:
        rows = [("builder", "pool", "tried", "succeeded", "failed", "late", "leaked", "broken", "seconds")]
        rows += [self._sum(builder, pool) for builder, pool in groups]
        rows.append(self._sum("all", ""))
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        return "\n".join("  ".join(map(_aligned, range(len(row)), row, widths)) for row in rows)

    def _sum(self, builder: str, pool: str) -> tuple[str, ...]:
        results = [
            self.results[name]
            for name, cell in self.cells.items()
            if not pool or (cell.builder, cell.pool) == (builder, pool)
        ]
        tried = [result for result in results if result.outcome != NOTHING]
        counts = [
            sum(result.outcome == outcome for result in tried)
            for outcome in (SUCCEEDED, FAILED, LATE, LEAKED, BROKEN)
        ]
        seconds = round(sum(result.seconds for result in results))
        return (builder, pool, *(str(number) for number in (len(tried), *counts, seconds)))


def _headings(faults: Sequence[str], width: int) -> list[str]:
    """The faults' names, written from top to bottom over their columns."""
    height = max(map(len, faults), default=0)
    padded = [name.rjust(height) for name in faults]
    return [" " * width + "  " + " ".join(name[row] for name in padded) for row in range(height)]


def _aligned(column: int, text: str, width: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)
