"""What the debootstrap builder makes of its arguments for Debian, Ubuntu and archives of one's own."""

from pathlib import Path
from typing import Any

import pytest

from vmbuilder import debian, runner
from vmbuilder.apt_sources import HostRelease
from vmbuilder.context import Context
from vmbuilder.errors import ValidationError

SCRIPT = (Path(__file__).resolve().parents[3] / "provisioner-scripts/builders/debootstrap.py").read_text()
NAMES = "release engine mirror components keyring kernel packages extra_packages locale".split()
ROOT = {"pool": "vms", "volume": "web1_sda", "disk_id": "sda", "filesystem": "ext4", "mountpoint": "/"}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """debootstrap's knowledge of releases, as it comes with Debian."""
    for name, text in {
        "bookworm": "keyring debian-archive",
        "noble": "keyring /x/ubuntu-archive-keyring.gpg",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(debian, "_SCRIPTS", tmp_path)
    return tmp_path


def builder(release: str, **arguments: Any) -> Any:
    given = dict.fromkeys(NAMES) | {"engine": "mmdebstrap", "locale": "C.UTF-8"} | arguments
    made: Any = runner.make_builder(
        SCRIPT, Context.from_json({"vm_name": "web1", "arguments": given, "volumes": [ROOT]})
    )
    made.release, made.distribution = release, debian.distribution_of(release)
    return made


@pytest.mark.parametrize(("release", "name"), [("bookworm", "debian"), ("noble", "ubuntu")])
def test_distribution_follows_from_the_release(scripts: Path, release: str, name: str) -> None:
    assert debian.distribution_of(release) == name


def test_release_that_nobody_knows_is_refused(scripts: Path) -> None:
    with pytest.raises(ValidationError, match="is not known"):
        debian.distribution_of("nimbus")


def test_missing_keyring_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_KEYRINGS", {"ubuntu": "/absent/ubuntu-archive-keyring.gpg"})
    with pytest.raises(ValidationError, match="ubuntu-archive-keyring is not installed"):
        debian.require_keyring("ubuntu")
    with pytest.raises(ValidationError, match=r"keyring /absent/own\.gpg: there is no such file"):
        debian.require_keyring("ubuntu", "/absent/own.gpg")


def test_kernel_of_the_distribution(scripts: Path) -> None:
    assert "linux-image-virtual" in builder("noble").packages()
    assert "linux-image-cloud-amd64" in builder("bookworm").packages()
    assert "my-kernel" in builder("noble", kernel="my-kernel").packages()


def test_own_mirror_with_the_distribution_s_components(scripts: Path) -> None:
    mirror = "https://mirror.invalid/ubuntu"
    assert builder("noble", mirror=mirror).sources() == [f"deb {mirror} noble main universe"]
    assert builder("noble", mirror=mirror, components=["main"]).sources() == [f"deb {mirror} noble main"]


def test_other_distribution_leaves_the_mirror_to_the_tool(
    scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = builder("noble")
    monkeypatch.setitem(
        type(made).sources.__globals__, "host_release", lambda: HostRelease("bookworm", "debian")
    )
    assert made.sources() == []


@pytest.mark.parametrize("engine", ["mmdebstrap", "debootstrap"])
def test_own_keyring_reaches_the_tool(
    scripts: Path, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = builder(
        "noble", engine=engine, mirror="https://mirror.invalid/u", keyring="/usr/share/keyrings/own.gpg"
    )
    lines: list[list[str]] = []

    class Stop(Exception):
        pass

    def run(argv: list[Any], **_: Any) -> None:
        lines.append([str(word) for word in argv])
        raise Stop

    monkeypatch.setattr(made, "run", run)
    from vmbuilder.target import Target

    with pytest.raises(Stop):
        getattr(made, f"run_{engine}")(Target(tmp_path))
    assert "--keyring=/usr/share/keyrings/own.gpg" in lines[0]
    assert "noble" in lines[0]
