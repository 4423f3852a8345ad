"""The journal of a build: what it makes that outlives the process, written down before it is made.

    intended ──▶ made ──▶ kept        (the build succeeded)
        │          ├────▶ held        (it did not, and its volumes shall stay for inspection)
        └──────────┴────▶ undone      (it did not; newest first)

What is held becomes `made` again when an operator discards it.

Lines of kind `client` say through which clients of shared storage a process works on the build. Who goes on
with it instead has them fenced, so that nothing they have sent arrives later.

Undoing is idempotent: something already gone is done.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import desc, func, select
from sqlalchemy.orm import Session

from pvccommon import builds
from pvccommon.database import Answer, Database
from pvccommon.models import PENDING, Resource, ResourceState, one_of

Undo = Callable[[str], None]  # takes the resource's name
May = Callable[[str, str], bool]  # takes the kind and the name

CLIENT = "client"  # "<pool>/<client>", see `StoragePool.client`


@dataclass(frozen=True)
class Journal:
    """The journal of one build on one node, for `owner`, who holds its lease (None: it has ended).

    Nothing is written, and nothing undone, when the lease is lost: LeaseLost is raised.
    """

    database: Database
    build_id: str
    node: str
    owner: str | None = None

    @contextmanager
    def making(self, kind: str, name: str) -> Iterator[None]:
        """Wrap the making of one thing: the intent is committed before, the fact after.

        When the block raises, the intent stays, so that a half-made thing is undone, too.
        """
        seq = self._intend(kind, name)
        yield
        self._set_state(seq, ResourceState.MADE)

    def hold(self, kinds: Collection[str]) -> list[str]:
        """Keep for inspection what was made whole of these kinds; returns the names. Safe to repeat."""
        made = select(Resource).where(
            Resource.build == self.build_id,
            Resource.node == self.node,
            one_of(Resource.kind, kinds),
            one_of(Resource.state, (ResourceState.MADE, ResourceState.HELD)),
        )

        def hold(session: Session) -> list[str]:
            rows = session.execute(made.order_by(Resource.seq)).scalars().all()
            for row in rows:
                row.state = ResourceState.HELD.value
            return [row.name for row in rows]

        return self._as_owner(hold)

    def undo(self, undoers: Mapping[str, Undo], may: May = lambda kind, name: True) -> list[str]:
        """Undo what is pending: kind by kind in the order of `undoers`, newest first in each.

        Other kinds are left alone, and so is what may not be undone here.
        A failing step does not stop the others. Returns what could not be undone, one line each; those rows
        stay pending and are tried again by the sweeper. Safe to repeat.
        """
        failures = []
        order = list(undoers)
        pending = [row for row in self._pending() if row[1] in order and may(row[1], row[2])]
        for seq, kind, name in sorted(pending, key=lambda row: order.index(row[1])):
            self._as_owner(lambda session: None)  # nothing is touched when it belongs to another
            try:
                undoers[kind](name)
            except Exception as exc:
                failures.append(f"{kind} {name}: {exc}")
            else:
                self._set_state(seq, ResourceState.UNDONE)
        return failures

    def pending(self) -> list[tuple[str, str]]:
        """(kind, name) of what is still to be undone, newest first."""
        return [(kind, name) for _, kind, name in self._pending()]

    def pending_names(self) -> list[str]:
        """What is still to be undone: "volume vms/web1_sda", …"""
        return [f"{kind} {name}" for kind, name in self.pending()]

    def note_client(self, pool: str, client: str) -> None:
        """Write down that this process works on the build through a client of a pool. Safe to repeat."""
        self._intend(CLIENT, f"{pool}/{client}")

    def clients(self, pool: str) -> list[str]:
        """The clients of a pool through which somebody works on the build, or has without closing them."""

        def read(session: Session) -> list[str]:
            names = [row.name for row in session.execute(self._clients_of_build()).scalars()]
            return [name.removeprefix(f"{pool}/") for name in names if name.startswith(f"{pool}/")]

        return self.database.patiently(read)

    def has_clients(self) -> bool:
        """Whether somebody works on the build, or has without closing his clients."""
        query = self._clients_of_build().limit(1)
        return self.database.patiently(lambda session: session.execute(query).scalar() is not None)

    def close_clients_in(self, session: Session, process: str = "") -> None:
        """A process (else: nobody) works on the build any more, as of this transaction."""
        for row in session.execute(self._clients_of_build()).scalars():
            if process in row.name:
                row.state = ResourceState.UNDONE.value

    def _clients_of_build(self) -> Any:
        return select(Resource).where(
            Resource.build == self.build_id, Resource.kind == CLIENT, one_of(Resource.state, PENDING)
        )

    def keep_in(self, session: Session) -> None:
        """The build has succeeded: its things belong to the VM, as of this transaction."""
        self.close_clients_in(session)
        rows = select(Resource).where(Resource.build == self.build_id, one_of(Resource.state, PENDING))
        for row in session.execute(rows).scalars():
            row.state = ResourceState.KEPT.value

    def note_gone(self, kind: str, name: str) -> None:
        """A thing of the build has been removed on the way, as planned."""
        rows = select(Resource).where(
            Resource.build == self.build_id,
            Resource.kind == kind,
            Resource.name == name,
            one_of(Resource.state, PENDING),
        )

        def note(session: Session) -> None:
            for row in session.execute(rows).scalars():
                row.state = ResourceState.UNDONE.value

        self._as_owner(note)

    def _intend(self, kind: str, name: str) -> int:
        """Write the line, unless it stands already: the same thing is never made twice."""
        mine = Resource.build == self.build_id

        def intend(session: Session) -> int:
            same = (mine, Resource.kind == kind, Resource.name == name, one_of(Resource.state, PENDING))
            written: int | None = session.execute(select(Resource.seq).where(*same)).scalar()
            if written is not None:
                return written
            seq: int = 1 + (session.execute(select(func.max(Resource.seq)).where(mine)).scalar() or 0)
            session.add(Resource(build=self.build_id, seq=seq, kind=kind, name=name, node=self.node))
            return seq

        return self._as_owner(intend)

    def _pending(self) -> list[tuple[int, str, str]]:
        pending = select(Resource).where(
            Resource.build == self.build_id,
            Resource.node == self.node,
            Resource.kind != CLIENT,
            one_of(Resource.state, PENDING),
        )

        def read(session: Session) -> list[tuple[int, str, str]]:
            rows = session.execute(pending.order_by(desc(Resource.seq))).scalars()
            return [(row.seq, row.kind, row.name) for row in rows]

        return self.database.patiently(read)

    def _set_state(self, seq: int, state: ResourceState) -> None:
        def set_state(session: Session) -> None:
            session.get(Resource, (self.build_id, seq)).state = state.value

        self._as_owner(set_state)

    def _as_owner(self, action: Callable[[Session], Answer]) -> Answer:
        """What an action answers in a transaction of the build's holder; it must be safe to repeat."""

        def act(session: Session) -> Answer:
            if self.owner is not None:
                builds.find_held(session, self.build_id, self.owner)
            return action(session)

        return self.database.patiently(act)
