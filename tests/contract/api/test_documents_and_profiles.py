"""Userdata, scripts and profiles: shapes, checks, secrets."""

from typing import Any

import pytest

from pvccommon.database import Database
from pvccommon.models import Image, Profile, Script

PROFILE_PATH = "/provisioner/profile"
GOOD_SCRIPT = "class VMBuilderScript(VMBuilder):\n    api_version = 1\n"


def paths(answer: Any) -> set[str]:
    return {problem["path"] for problem in answer["problems"]}


@pytest.mark.parametrize(
    ("kind", "document"), [("userdata", "#cloud-config\nä: ö\n"), ("script", GOOD_SCRIPT)]
)
def test_documents_have_the_shape_clients_read(api: Any, expect: Any, kind: str, document: str) -> None:
    path = f"/provisioner/{kind}"
    expect(api.get(path), 404)
    expect(api.post(path, {"name": "one"}, form={"data": document}), 200)
    assert expect(api.post(path, {"name": "one"}, form={"data": document}), 400)["kind"] == "exists"
    [row] = expect(api.get(path, {"limit": "on"}), 200)
    assert {"id": 1, "name": "one", kind: document}.items() <= row.items()
    changed = document + "# more\n"
    # Existing clients repeat the name in the query.
    expect(api.put(f"{path}/one", {"name": "one"}, form={"data": changed}), 200)
    assert expect(api.get(f"{path}/one"), 200)[0][kind] == changed
    expect(api.put(f"{path}/two", form={"data": document}), 400)
    expect(api.get(f"{path}/two"), 404)
    expect(api.delete(f"{path}/two"), 400)
    expect(api.delete(f"{path}/one"), 200)
    expect(api.get(path), 404)


@pytest.mark.parametrize("kind", ["userdata", "script"])
@pytest.mark.parametrize("data", [None, "", "  \n ", "x" * (1024 * 1024 + 1)])
def test_bad_documents_are_refused(api: Any, expect: Any, kind: str, data: str | None) -> None:
    form = {} if data is None else {"data": data}
    assert paths(expect(api.post(f"/provisioner/{kind}", {"name": "one"}, form=form), 400)) == {"data"}
    assert "name" in paths(expect(api.post(f"/provisioner/{kind}", form=form), 400))


def test_a_large_document_is_taken(api: Any, expect: Any) -> None:
    document = "ä" * (512 * 1024)  # one MiB, three as a form
    expect(api.post("/provisioner/userdata", {"name": "large"}, form={"data": document}), 200)
    assert expect(api.get("/provisioner/userdata/large"), 200)[0]["userdata"] == document


@pytest.mark.parametrize(
    "source",
    [
        "def (:",
        "x = 1\n",
        "class VMBuilderScript(VMBuilder):\n    pass\n",
        "class VMBuilderScript(VMBuilder):\n    api_version = 99\n",
        GOOD_SCRIPT + "    arguments = (Argument('a', type='color'),)\n",
        GOOD_SCRIPT + "    arguments = (Argument(open('/etc/passwd').read()),)\n",
        GOOD_SCRIPT + "    def setup(self, more): ...\n",
    ],
)
def test_scripts_that_cannot_work_are_refused(api: Any, database: Database, expect: Any, source: str) -> None:
    answer = expect(api.post("/provisioner/script", {"name": "bad"}, form={"data": source}), 400)
    assert answer["problems"]
    with database.session() as session:
        assert session.query(Script).count() == 0


def test_all_problems_of_a_script_come_together_with_its_name(api: Any, expect: Any) -> None:
    source = "class VMBuilderScript(VMBuilder):\n    api_version = 7\n    cacheable = 3\n"
    answer = expect(api.post("/provisioner/script", {"name": "a b"}, form={"data": source}), 400)
    assert paths(answer) == {"name", "api_version", "cacheable"}


def test_a_script_shows_what_it_declares(api: Any, parts: None, expect: Any) -> None:
    [row] = expect(api.get("/provisioner/script/maker"), 200)
    assert (row["summary"], row["api_version"], row["legacy"]) == ("Makes a machine for tests.", 1, False)
    assert [argument["name"] for argument in row["arguments"]] == [
        "release",
        "count",
        "fast",
        "password",
        "owner",
    ]
    assert row["arguments"][0]["choices"] == ["bookworm", "trixie"]
    assert row["arguments"][3]["secret"] is True
    assert len(row["sha256"]) == 64


def test_profile_has_the_shape_clients_read(api: Any, profile: str, expect: Any) -> None:
    assert expect(api.get(PROFILE_PATH), 200) == [
        {
            "id": 1,
            "name": "debian12",
            "type": "provisioner",
            "system_template": "small",
            "network_template": "lan",
            "storage_template": "disk",
            "userdata": "cloud",
            "script": "maker",
            "ova": "N/A",
            "image": "N/A",
            "arguments": ["owner=me", "password=<redacted>"],
        }
    ]
    assert expect(api.get(f"{PROFILE_PATH}/debian12"), 200) == expect(api.get(PROFILE_PATH), 200)
    expect(api.get(f"{PROFILE_PATH}/other"), 404)


def test_parts_of_a_profile_may_be_absent(api: Any, parts: None, expect: Any) -> None:
    query = {"name": "bare", "profile_type": "provisioner", "system_template": "small", "script": "maker"}
    expect(api.post(PROFILE_PATH, query), 200)
    [row] = expect(api.get(PROFILE_PATH), 200)
    assert {row[key] for key in ("network_template", "storage_template", "userdata", "ova")} == {"N/A"}
    assert row["arguments"] == []


def test_everything_wrong_with_a_profile_is_told_at_once(api: Any, parts: None, expect: Any) -> None:
    query = {
        "name": "a b",
        "profile_type": "magic",
        "system_template": "s",
        "network_template": "n",
        "storage_template": "t",
        "userdata": "u",
        "script": "maker",
        "arg": ["release=sid", "count=many", "fast=perhaps", "colour=red", "nothing"],
        "extra": "1",
    }
    answer = expect(api.post(PROFILE_PATH, query), 400)
    assert paths(answer) == {
        *(
            "name",
            "profile_type",
            "system_template",
            "network_template",
            "storage_template",
            "userdata",
            "extra",
        ),
        *("arguments.release", "arguments.count", "arguments.fast", "arguments.colour", "arguments[4]"),
    }
    expect(api.get(PROFILE_PATH), 404)


def test_unknown_script_and_missing_parts(api: Any, parts: None, expect: Any) -> None:
    query = {"name": "x", "profile_type": "provisioner", "system_template": "small", "script": "none"}
    assert paths(expect(api.post(PROFILE_PATH, query), 400)) == {"script"}
    assert paths(expect(api.post(PROFILE_PATH), 400)) == {"name", "profile_type", "system_template", "script"}
    answer = expect(
        api.post(PROFILE_PATH, {**query, "script": "maker", "profile_type": "ova", "ova": "x"}), 400
    )
    assert "ova" in paths(answer)


@pytest.mark.parametrize("given", ["image", "ova"])
def test_a_failed_image_is_no_part_of_a_profile(
    api: Any, profile: str, database: Database, expect: Any, given: str
) -> None:
    image = {"name": "golden", "kind": "ova", "format": "ova", "pool": "vms", "source": "upload"}
    error = {"kind": "no-space", "what": "import image golden", "why": "the pool is full", "hint": ""}
    with database.session() as session:
        session.add(Image(**image, document={}, state="failed", error=error))
    query = {"name": "x", "profile_type": "ova", "system_template": "small", "script": "maker"}
    answers = [expect(api.post(PROFILE_PATH, {**query, given: "golden"}), 400)]
    if given == "image":
        answers.append(expect(api.put(f"{PROFILE_PATH}/debian12", {"image": "golden"}), 400))
    for answer in answers:
        assert paths(answer) == {"image"}
        assert "image golden cannot be used: it has failed: the pool is full" in answer["message"]
        assert answer["hint"] == "upload or import it again; see: pvc provisioner image show golden"
    assert [row["image"] for row in expect(api.get(PROFILE_PATH), 200)] == ["N/A"]


def test_values_are_split_at_the_first_equals_sign(api: Any, profile: str, expect: Any) -> None:
    expect(api.put(f"{PROFILE_PATH}/debian12", {"arg": ["owner=a=b|c"]}), 200)
    assert expect(api.get(PROFILE_PATH), 200)[0]["arguments"] == ["owner=a=b|c"]


def stored(database: Database) -> list[str]:
    with database.session() as session:
        arguments: list[str] = session.query(Profile).one().arguments
        return arguments


def test_a_redacted_secret_that_comes_back_keeps_its_value(
    api: Any, profile: str, database: Database, expect: Any
) -> None:
    path = f"{PROFILE_PATH}/{profile}"
    expect(api.put(path, {"arg": ["owner=you", "password=<redacted>"]}), 200)
    assert stored(database) == ["owner=you", "password=$6$salt$hash"]
    expect(api.put(path, {"arg": ["owner=you"]}), 200)
    assert stored(database) == ["owner=you"]
    assert paths(expect(api.put(path, {"arg": ["password=<redacted>"]}), 400)) == {"arguments.password"}
    # For what is not secret, the text is just a text.
    expect(api.put(path, {"arg": ["owner=<redacted>"]}), 200)


def test_a_change_of_scripts_does_not_reveal_secrets(
    api: Any, profile: str, database: Database, expect: Any
) -> None:
    source = GOOD_SCRIPT + "    arguments = (Argument('password'), Argument('owner'))\n"
    expect(api.post("/provisioner/script", {"name": "open"}, form={"data": source}), 200)
    path = f"{PROFILE_PATH}/{profile}"
    assert paths(expect(api.put(path, {"script": "open"}), 400)) == {"arguments.password"}
    answer = expect(api.put(path, {"script": "open", "arg": ["password=<redacted>"]}), 400)
    assert paths(answer) == {"arguments.password"}
    assert "$6$" not in answer["message"]
    expect(api.put(path, {"script": "open", "arg": ["password=new"]}), 200)
    assert stored(database) == ["password=new"]


def test_profile_changes_only_what_is_given(api: Any, profile: str, expect: Any) -> None:
    path = f"{PROFILE_PATH}/{profile}"
    expect(api.post("/provisioner/template/network", {"name": "other"}), 200)
    expect(api.put(path, {"network_template": "other"}), 200)
    [row] = expect(api.get(PROFILE_PATH), 200)
    assert (row["network_template"], row["storage_template"]) == ("other", "disk")
    assert row["arguments"] == ["owner=me", "password=<redacted>"]
    expect(api.put(path, {"network_template": "", "userdata": ""}), 200)
    [row] = expect(api.get(PROFILE_PATH), 200)
    assert (row["network_template"], row["userdata"]) == ("N/A", "N/A")
    expect(api.put(path), 200)
    expect(api.put(f"{PROFILE_PATH}/other", {"userdata": ""}), 400)
    assert paths(expect(api.put(path, {"script": "none", "system_template": ""}), 400)) == {
        "script",
        "system_template",
    }


@pytest.mark.parametrize("way", [{"json": {"arg": []}}, {"query": {"arg": ""}}, {"form": {"arg": ""}}])
def test_arguments_can_be_cleared(api: Any, profile: str, expect: Any, way: dict[str, Any]) -> None:
    expect(api.put(f"{PROFILE_PATH}/{profile}", **way), 200)
    assert expect(api.get(PROFILE_PATH), 200)[0]["arguments"] == []


def test_profile_names_are_taken_once(api: Any, profile: str, expect: Any) -> None:
    query = {"name": profile, "profile_type": "provisioner", "system_template": "small", "script": "maker"}
    assert expect(api.post(PROFILE_PATH, query), 400)["kind"] == "exists"
    expect(api.delete(f"{PROFILE_PATH}/{profile}"), 200)
    expect(api.delete(f"{PROFILE_PATH}/{profile}"), 400)


def test_ova_images_are_answered_in_the_shapes_clients_expect(api: Any, expect: Any) -> None:
    expect(api.get("/provisioner/ova"), 404)
    expect(api.get("/provisioner/ova/x"), 404)
    expect(api.post("/provisioner/ova/x", {"pool": "vms", "ova_size": "1"}), 400)
    expect(api.delete("/provisioner/ova/x"), 400)
