"""The command line against the real application: both must mean the same by each parameter and field."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "cli"))

from cli_wsgi import WsgiAdapter

from pvc.errors import EXIT_CODES
from pvc.main import run
from pvccommon import builds
from pvccommon.database import Database
from pvccommon.models import Build, BuildState, Resource, ResourceState

CREATE = ("provisioner", "create", "web1", "debian12", "--no-wait", "--json")
ERROR = {"kind": "environment", "what": "install", "why": "no mirror", "hint": "", "stage": "install"}

Pvc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pvc(
    app: Flask, api: Any, profile: str, answering: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Pvc:
    """Run a command line; gives exit code, standard output and standard error."""
    monkeypatch.setenv("PVC_API_URL", "http://api.test:7370")
    monkeypatch.setenv("PVC_API_KEY", api.token)

    def run_line(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(arguments, transport=WsgiAdapter(app))
        return code, *capsys.readouterr()

    return run_line


def fail(database: Database, task: str, *held: str) -> None:
    """End a build badly; volumes of it are kept."""
    with database.session() as session:
        builds.finish_build(session.get(Build, task), BuildState.FAILED, ERROR)
        for seq, name in enumerate(held, 1):
            state = ResourceState.HELD.value
            session.add(Resource(build=task, seq=seq, kind="volume", name=name, node="hv1", state=state))


def test_a_build_with_kept_volumes(pvc: Pvc, database: Database) -> None:
    code, out, _ = pvc(*CREATE, "--keep-on-failure")
    assert code == 0
    task = json.loads(out)["task_id"]
    with database.session() as session:
        assert session.get(Build, task).keep_on_failure
    fail(database, task, "vms/web1_sda")
    code, out, err = pvc("cluster", "task", task, "--no-wait")
    assert code == EXIT_CODES["environment"]
    assert "vms/web1_sda" in out
    assert f"kept volumes: vms/web1_sda; `pvc cluster task discard {task}` deletes them" in err
    code, _, err = pvc("cluster", "task", "retry", task)
    assert code == EXIT_CODES["wrong-state"], err
    code, out, _ = pvc("cluster", "task", "discard", task, "-y")
    assert (code, out) == (0, "Removed the volumes vms/web1_sda.\n")


def test_a_retry(pvc: Pvc, database: Database) -> None:
    task = json.loads(pvc(*CREATE)[1])["task_id"]
    fail(database, task)
    code, out, err = pvc("cluster", "task", "retry", task, "-a", "password=other", "--no-wait", "--json")
    assert code == 0, err
    with database.session() as session:
        again = session.get(Build, json.loads(out)["task_id"])
        assert (again.retry_of, again.secrets, again.keep_on_failure) == (task, {"password": "other"}, False)
    code, _, err = pvc("cluster", "task", "discard", task, "-y")
    assert code == EXIT_CODES["wrong-state"]
    assert "no volumes are kept" in err


def test_the_builders_that_come_with_the_product(pvc: Pvc, tmp_path: Path) -> None:
    """All are accepted, come back as they are, and a changed one is kept until told otherwise."""
    command = ("provisioner", "script", "install-defaults", "-f", "json")

    def outcomes(*arguments: str) -> dict[str, str]:
        code, out, err = pvc(*command, *arguments)
        assert code == 0, err
        return {row["name"]: row["outcome"] for row in json.loads(out)}

    first = outcomes()
    assert {"noop", "debootstrap", "rinse", "freebsd"} <= set(first)
    assert set(first.values()) == {"installed"}
    assert set(outcomes().values()) == {"up to date"}
    _, text, _ = pvc("provisioner", "script", "show", "noop")
    (tmp_path / "mine.py").write_text(text + "# ours\n")
    pvc("provisioner", "script", "modify", "noop", str(tmp_path / "mine.py"))
    assert outcomes("noop") == {"noop": "kept"}
    assert outcomes("noop", "--force", "noop") == {"noop": "overwritten"}
    assert set(outcomes().values()) == {"up to date"}
