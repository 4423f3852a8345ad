"""The journal of a build: what it makes that outlives the process, written down before it is made.

    intended ──▶ made ──▶ kept        (the build succeeded)
        └──────────┴────▶ undone      (it did not; newest first)

Undoing is idempotent: something already gone is done.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import desc, func, select
from sqlalchemy.orm import Session

from pvccommon.database import Database
from pvccommon.models import Resource, ResourceState, one_of

Undo = Callable[[str], None]  # takes the resource's name

PENDING = (ResourceState.INTENDED.value, ResourceState.MADE.value)


@dataclass(frozen=True)
class Journal:
    """The journal of one build on one node."""

    database: Database
    build_id: str
    node: str

    @contextmanager
    def making(self, kind: str, name: str) -> Iterator[None]:
        """Wrap the making of one thing: the intent is committed before, the fact after.

        When the block raises, the intent stays, so that a half-made thing is undone, too.
        """
        seq = self._intend(kind, name)
        yield
        self._set_state(seq, ResourceState.MADE)

    def undo(self, undoers: Mapping[str, Undo]) -> list[str]:
        """Undo everything that is pending: kind by kind in the order of `undoers`, newest first in each.

        A failing step does not stop the others. Returns what could not be undone, one line each; those rows
        stay pending and are tried again by the sweeper. Safe to repeat.
        """
        failures = []
        order = list(undoers)
        for seq, kind, name in sorted(self._pending(), key=lambda row: order.index(row[1])):
            try:
                undoers[kind](name)
            except Exception as exc:
                failures.append(f"{kind} {name}: {exc}")
            else:
                self._set_state(seq, ResourceState.UNDONE)
        return failures

    def keep_in(self, session: Session) -> None:
        """The build has succeeded: its things belong to the VM, as of this transaction."""
        rows = select(Resource).where(Resource.build == self.build_id, one_of(Resource.state, PENDING))
        for row in session.execute(rows).scalars():
            row.state = ResourceState.KEPT.value

    def _intend(self, kind: str, name: str) -> int:
        with self.database.session() as session:
            last = session.execute(
                select(func.max(Resource.seq)).where(Resource.build == self.build_id)
            ).scalar()
            row = Resource(build=self.build_id, seq=(last or 0) + 1, kind=kind, name=name, node=self.node)
            session.add(row)
            return row.seq

    def _pending(self) -> list[tuple[int, str, str]]:
        with self.database.session() as session:
            rows = session.execute(
                select(Resource)
                .where(
                    Resource.build == self.build_id,
                    Resource.node == self.node,
                    one_of(Resource.state, PENDING),
                )
                .order_by(desc(Resource.seq))
            ).scalars()
            return [(row.seq, row.kind, row.name) for row in rows]

    def _set_state(self, seq: int, state: ResourceState) -> None:
        with self.database.session() as session:
            session.get(Resource, (self.build_id, seq)).state = state.value
