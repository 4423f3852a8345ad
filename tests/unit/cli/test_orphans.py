"""`pvc cluster orphans`: the list, the question, and what could not be removed."""

import json
from typing import Any

import pytest
from cli_fake_api import FakeApi, Steps

from pvc.errors import EXIT_CODES

ORPHANS: list[dict[str, Any]] = [
    {
        "id": "o1",
        "kind": "volume",
        "node": "hv1",
        "name": "vms/web1_sda",
        "size_bytes": 5 << 30,
        "used_bytes": 1 << 30,
        "why": "no VM has it",
    },
    {
        "id": "o2",
        "kind": "domain",
        "node": "hv2",
        "name": "web2",
        "size_bytes": None,
        "used_bytes": None,
        "why": "no record of it",
    },
]
LIST = ("cluster", "orphans")


@pytest.fixture(autouse=True)
def some_orphans(api: FakeApi) -> None:
    api.answers["GET /orphans"] = ORPHANS


def test_the_list(api: FakeApi, pvc_run: Any) -> None:
    shown = pvc_run(*LIST).out
    for text in ("volume", "hv1", "vms/web1_sda", "5 GiB", "1 GiB", "no VM has it", "web2"):
        assert text in shown
    assert pvc_run(*LIST, "-f", "raw").out == "o1\no2\n"
    assert json.loads(pvc_run(*LIST, "--json").out) == ORPHANS


@pytest.mark.parametrize("options", [(), ("--remove",), ("--remove", "-y")])
def test_nothing_is_a_friendly_line(api: FakeApi, pvc_run: Any, options: tuple[str, ...]) -> None:
    api.answers["GET /orphans"] = []
    result = pvc_run(*LIST, *options)
    assert (result.code, result.out) == (0, "")
    assert result.err == "no orphans: all that the nodes hold belongs to something\n"
    assert [asked.method for asked in api.asked] == ["GET"]


@pytest.mark.parametrize("answer", [({"message": "no such path"}, 404), {"orphans": []}, [{"name": "a"}]])
def test_an_api_without_orphans_does_not_seem_to_have_none(api: FakeApi, pvc_run: Any, answer: Any) -> None:
    api.answers["GET /orphans"] = answer
    assert pvc_run(*LIST).code in (EXIT_CODES["not-found"], EXIT_CODES["unreachable"])


def test_removing_shows_the_table_and_asks_once(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: questions.append(text))
    result = pvc_run(*LIST, "--remove")
    assert result.code == EXIT_CODES["declined"]
    assert "vms/web1_sda" in result.out and "web2" in result.out
    assert questions == ["Remove these 2 orphans? What they hold is lost."]
    assert [asked.method for asked in api.asked] == ["GET"]


def test_removed(api: FakeApi, pvc_run: Any) -> None:
    api.answers["DELETE /orphans"] = {"message": "Removed 2.", "removed": ["o1", "o2"], "failed": []}
    result = pvc_run(*LIST, "--remove", "-y")
    assert (result.code, result.out.splitlines()[-1]) == (0, "Removed 2.")
    assert api.asked[-1].form == {"orphan": ["o1", "o2"]}


def test_what_could_not_be_removed_is_said(api: FakeApi, pvc_run: Any) -> None:
    failed = [{"id": "o1", "message": "it is open"}]
    api.answers["DELETE /orphans"] = {"message": "Removed 1 of 2.", "removed": ["o2"], "failed": failed}
    result = pvc_run(*LIST, "--remove", "-y")
    assert (result.code, result.out.splitlines()[-1]) == (1, "Removed 1 of 2.")
    assert result.err == "error: 1 of 2 orphans could not be removed: volume vms/web1_sda: it is open\n"
    result = pvc_run(*LIST, "--remove", "-y", "--json")
    assert result.code == 1
    assert json.loads(result.out) == {"removed": ["o2"], "failed": failed}


def test_many_orphans_are_removed_in_batches(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvc.commands.orphans.BATCH", 1)
    api.answers["DELETE /orphans"] = Steps(
        {"message": "Removed o1.", "removed": ["o1"], "failed": []},
        {"message": "Removed o2.", "removed": ["o2"], "failed": []},
    )
    result = pvc_run(*LIST, "--remove", "-y", "-f", "raw")
    assert (result.code, result.out) == (0, "o1\no2\n")
    assert [asked.form for asked in api.asked[1:]] == [{"orphan": ["o1"]}, {"orphan": ["o2"]}]
