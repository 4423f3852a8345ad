"""`pvc provisioner script install-defaults`: what is stored, updated, and left as the operator has it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import FakeApi

from pvc.commands import default_scripts

DONE = {"message": "Done."}
COMMAND = ("provisioner", "script", "install-defaults")
OLD, NEW, OTHER = "# version 1\n", "# version 2\n", "# the operator's\n"
REPOSITORY = Path(__file__).resolve().parents[3]


def sum_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def builders(tmp_path: Path) -> Path:
    """Three builders; of noop there was an earlier version."""
    directory = tmp_path / "builders"
    directory.mkdir()
    sums = [("noop", OLD), ("noop", NEW), ("iso", NEW), ("ova", NEW)]
    (directory / "SHA256SUMS").write_text("".join(f"{sum_of(text)}  {name}.py\n" for name, text in sums))
    for name in ("noop", "iso", "ova"):
        (directory / f"{name}.py").write_text(NEW)
    return directory


def on_server(api: FakeApi, **scripts: str) -> None:
    api.answers["GET /provisioner/script"] = [
        {"name": name, "script": text} for name, text in scripts.items()
    ]
    for name, text in scripts.items():
        api.answers[f"GET /provisioner/script/{name}"] = {"name": name, "script": text}
        api.answers[f"PUT /provisioner/script/{name}"] = DONE
    api.answers["POST /provisioner/script"] = DONE


def changes(api: FakeApi) -> list[tuple[str, str, dict[str, list[str]]]]:
    return [
        (one.method, one.raw_path.rpartition("/")[2], one.form) for one in api.asked if one.method != "GET"
    ]


def outcomes(out: str) -> dict[str, str]:
    return {row["name"]: row["outcome"] for row in json.loads(out)}


def test_new_old_equal_and_changed_scripts(api: FakeApi, pvc_run: Any, builders: Path) -> None:
    (builders / "rinse.py").write_text(NEW)
    on_server(api, noop=OLD, iso=NEW, ova=OTHER)
    done = pvc_run(*COMMAND, "--directory", str(builders), "-f", "json")
    assert done.code == 0
    assert outcomes(done.out) == {"noop": "updated", "iso": "up to date", "ova": "kept", "rinse": "installed"}
    assert "--force ova" in done.out
    assert changes(api) == [
        ("PUT", "noop", {"data": [NEW]}),
        ("POST", "script", {"name": ["rinse"], "data": [NEW]}),
    ]


def test_changed_script_is_overwritten_only_by_its_name(api: FakeApi, pvc_run: Any, builders: Path) -> None:
    on_server(api, noop=OTHER, iso=OTHER, ova=OTHER)
    done = pvc_run(*COMMAND, "--directory", str(builders), "--force", "iso", "-f", "json")
    assert outcomes(done.out) == {"noop": "kept", "iso": "overwritten", "ova": "kept"}
    assert changes(api) == [("PUT", "iso", {"data": [NEW]})]


def test_version_of_another_builder_counts_as_changed(api: FakeApi, pvc_run: Any, builders: Path) -> None:
    on_server(api, iso=OLD, noop=NEW, ova=NEW)
    done = pvc_run(*COMMAND, "--directory", str(builders), "-f", "json")
    assert outcomes(done.out)["iso"] == "kept"
    assert changes(api) == []


def test_dry_run_and_names_limit_what_is_done(api: FakeApi, pvc_run: Any, builders: Path) -> None:
    on_server(api, noop=OLD)
    done = pvc_run(*COMMAND, "noop", "iso", "--directory", str(builders), "--dry-run", "-f", "json")
    assert outcomes(done.out) == {"noop": "updated", "iso": "installed"}
    assert changes(api) == []


def test_a_person_is_told_about_what_was_kept(api: FakeApi, pvc_run: Any, builders: Path) -> None:
    on_server(api, noop=OTHER, iso=NEW, ova=NEW)
    done = pvc_run(*COMMAND, "--directory", str(builders))
    assert "changed on the server" in done.out


@pytest.mark.parametrize("arguments", [("absent",), ("--force", "absent")])
def test_unknown_name_is_refused_before_anything_is_sent(
    api: FakeApi, pvc_run: Any, builders: Path, arguments: tuple[str, ...]
) -> None:
    done = pvc_run(*COMMAND, *arguments, "--directory", str(builders))
    assert done.code == 2
    assert "no builder absent" in done.err
    assert api.asked == []


def test_machine_without_builders_says_what_to_install(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PACKAGED", "CHECKOUT"):
        monkeypatch.setattr(default_scripts, name, tmp_path / "absent")
    done = pvc_run(*COMMAND)
    assert done.code == 3
    assert "pvc-provisioner-scripts" in done.err


def test_directory_is_where_the_package_puts_it() -> None:
    listed = (REPOSITORY / "debian" / "pvc-provisioner-scripts.install").read_text().splitlines()
    assert f"provisioner-scripts/builders {default_scripts.PACKAGED.parent}".replace(" /", " ") in listed
    assert default_scripts.CHECKOUT == REPOSITORY / "provisioner-scripts" / "builders"


def test_sums_know_every_builder_as_it_is() -> None:
    """The list only grows: an installation may have any version that was ever part of the product."""
    found = default_scripts.read_builders(default_scripts.CHECKOUT)
    assert len(found) >= 4
    missing = [f"{sum_of(one.text)}  {one.name}.py" for one in found if sum_of(one.text) not in one.earlier]
    assert not missing, f"run dev/builder-sums, which adds to {default_scripts.SUMS}: {missing}"


def test_sums_of_the_first_version_are_known() -> None:
    sums = default_scripts.read_sums(default_scripts.CHECKOUT / default_scripts.SUMS)
    first = {name: [digest[:12] for digest in found] for name, found in sums.items()}
    assert "62f569642937" in first["debootstrap.py"]
    assert "2f8c9078b2bc" in first["noop.py"]
