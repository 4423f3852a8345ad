"""API tokens: made once, shown once, kept as hashes."""

import hashlib
import hmac
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon import names
from pvccommon.errors import Exists, NotFound, Problem, WrongInput
from pvccommon.models import ApiToken

ROLES = ("viewer", "operator", "admin")  # each may do what those before it may
PREFIX = "pvc_"


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def create_token(session: Session, name: str, role: str) -> str:
    """Make a token and return its text, which cannot be had again. Raises WrongInput, Exists."""
    problems = []
    if not names.is_object_name(name):
        problems.append(Problem("name", f"{name!r} is not a valid name"))
    if role not in ROLES:
        problems.append(Problem("role", f"{role!r} is not one of {', '.join(ROLES)}"))
    if problems:
        raise WrongInput(f"create token {name}", problems=problems)
    if session.get(ApiToken, name):
        raise Exists(f"create token {name}", "the name is taken", f"pvc-api token delete {name}")
    token = PREFIX + secrets.token_urlsafe(32)
    session.add(ApiToken(name=name, hash=hash_token(token), role=role))
    return token


def find_token(session: Session, token: str) -> ApiToken | None:
    """The row of a token, or None. The look-up is by hash, and the hashes are compared in constant time."""
    wanted = hash_token(token)
    row = session.execute(select(ApiToken).where(ApiToken.hash == wanted)).scalar_one_or_none()
    return row if row is not None and hmac.compare_digest(row.hash, wanted) else None


def delete_token(session: Session, name: str) -> None:
    row = session.get(ApiToken, name)
    if row is None:
        raise NotFound(f"delete token {name}", "there is no such token", "see: pvc-api token list")
    session.delete(row)
