"""Finding rows by name: exactly, or by the filter existing clients send."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Text, cast, func, inspect, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session, selectinload

from pvccommon.errors import NotFound, Problem, WrongInput, WrongState


def matching(column: Any, limit: str | None) -> Any:
    """The condition of a list filter: part of the name, `^` anchors its start, `$` its end, no wildcards."""
    text = limit or ""
    at_start, at_end = text.startswith("^"), text.endswith("$")
    text = text[1 if at_start else 0 : len(text) - 1 if at_end and len(text) > int(at_start) else None]
    if at_start and at_end:
        return column == text
    if at_start:
        return column.startswith(text, autoescape=True)
    if at_end:
        return column.endswith(text, autoescape=True)
    return column.contains(text, autoescape=True)


def whole(model: Any) -> Any:
    """A query of rows with all they refer to, so that they can be shown after the transaction."""
    return select(model).options(
        *(selectinload(getattr(model, key)) for key in inspect(model).relationships.keys())
    )


def list_rows(session: Session, model: Any, limit: str | None, noun: str) -> list[Any]:
    """Rows in the order of their names. Raises NotFound when there is none: existing clients expect that."""
    statement = whole(model).where(matching(model.name, limit)).order_by(model.name)
    found = session.execute(statement).scalars().all()
    if not found:
        why = f"none matches {limit!r}" if limit else "there are none yet"
        raise NotFound(f"list {noun}s", why)
    return list(found)


def get_row(session: Session, model: Any, name: str, noun: str, *, lock: bool = False) -> Any:
    """The row of exactly this name; with `lock`, kept from other changes until the transaction ends."""
    statement = whole(model).where(model.name == name)
    row = session.execute(statement.with_for_update(of=model) if lock else statement).scalar_one_or_none()
    if row is None:
        raise NotFound(f"find {noun} {name}", "there is no such one", f"see the list of {noun}s")
    return row


def refuse_if_used(what: str, profiles: list[str]) -> None:
    if profiles:
        listed = ", ".join(profiles[:20]) + (" …" if len(profiles) > 20 else "")
        raise WrongState(what, f"it is used by profile {listed}", "change or delete the profile first")


def names_matching(session: Session, column: Any, pattern: str) -> set[str]:
    """Values of a column that hold a match of a regular expression. Raises WrongInput when it is none.

    PostgreSQL's matcher does not blow up as others do; still its time is limited.
    """
    return _matching(session, select(column).where(column.regexp_match(pattern)))


def texts_matching(session: Session, texts: Iterable[str], pattern: str) -> set[str]:
    """The same for names that stand in no table."""
    column = func.unnest(cast(list(texts), ARRAY(Text))).column_valued("name")
    return _matching(session, select(column).where(column.regexp_match(pattern)))


def _matching(session: Session, statement: Any) -> set[str]:
    what = "filter by name"
    try:
        session.execute(text("SET LOCAL statement_timeout = 2000"))
        found = set(session.execute(statement).scalars())
        session.execute(text("SET LOCAL statement_timeout = 0"))
    except (DataError, OperationalError) as exc:
        reason = str(exc.orig).strip().splitlines()[0]
        raise WrongInput(what, problems=[Problem("limit", f"is not a regular expression: {reason}")]) from exc
    return found
