"""What is known of RPM distributions, and the settings given to dnf."""

from pathlib import Path

import pytest

from vmbuilder import dnf, redhat, rinse
from vmbuilder.bootloader import REDHAT
from vmbuilder.dnf import DnfProgress, Repositories
from vmbuilder.errors import ValidationError

RINSE = """\
# [rocky-9] in a comment
[rocky-9]
mirror.amd64   = https://mirror.invalid/rocky/9/BaseOS/x86_64/os/Packages/
mirror.aarch64 = https://mirror.invalid/rocky/9/BaseOS/aarch64/os/Packages/

[fedora-37]
mirror = https://mirror.invalid/fedora/37/Everything/x86_64/os/Packages/
"""


@pytest.fixture
def rinse_config(tmp_path: Path) -> Path:
    path = tmp_path / "rinse.conf"
    path.write_text(RINSE)
    return path


@pytest.mark.parametrize(
    ("distribution", "release", "path"),
    [
        ("rocky", "9", "/var/lib/rpm"),
        ("alma", "9.4", "/var/lib/rpm"),
        ("rocky", "10", "/usr/lib/sysimage/rpm"),
        ("fedora", "39", "/usr/lib/sysimage/rpm"),
        ("fedora", "rawhide", "/usr/lib/sysimage/rpm"),
    ],
)
def test_database_lies_where_the_release_looks_for_it(distribution: str, release: str, path: str) -> None:
    assert redhat.database_path(distribution, release) == path


@pytest.mark.parametrize(("distribution", "release"), [("rocky", "8"), ("centos", "7"), ("fedora", "32")])
def test_release_that_cannot_read_the_database_is_refused(distribution: str, release: str) -> None:
    with pytest.raises(ValidationError, match="too old"):
        redhat.check_readable(distribution, release)


@pytest.mark.parametrize(
    ("distribution", "release"), [("rocky", "9"), ("fedora", "33"), ("fedora", "rawhide")]
)
def test_release_that_can_is_not(distribution: str, release: str) -> None:
    redhat.check_readable(distribution, release)


def test_repositories_follow_from_rinse_configuration(rinse_config: Path) -> None:
    assert redhat.known_repositories("rocky-9", rinse_config) == [
        "https://mirror.invalid/rocky/9/BaseOS/x86_64/os/",
        "https://mirror.invalid/rocky/9/AppStream/x86_64/os/",
    ]
    assert redhat.known_repositories("fedora-37", rinse_config) == [
        "https://mirror.invalid/fedora/37/Everything/x86_64/os/"
    ]


def test_unknown_release_has_no_repositories(rinse_config: Path, tmp_path: Path) -> None:
    assert rinse.mirror("rocky-9", tmp_path / "absent") is None
    with pytest.raises(ValidationError, match="repositories=URL"):
        redhat.known_repositories("rocky-8", rinse_config)


@pytest.mark.parametrize(
    ("distribution", "release", "name"),
    [
        ("rocky", "9", "rocky/RPM-GPG-KEY-Rocky-9"),
        ("alma", "9.4", "alma/RPM-GPG-KEY-AlmaLinux-9"),
        ("centos", "9", "centos/RPM-GPG-KEY-centosofficial"),
        ("fedora", "39", "fedora/RPM-GPG-KEY-fedora-39-primary"),
    ],
)
def test_keys_the_node_has_are_found(distribution: str, release: str, name: str, tmp_path: Path) -> None:
    for other in (name, f"{distribution}/RPM-GPG-KEY-{distribution}-3", "RPM-GPG-KEY-other"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    assert redhat.known_keys(distribution, release, [tmp_path]) == [str(tmp_path / name)]


def test_no_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="repository_keys"):
        redhat.known_keys("rocky", "9", [tmp_path])


def test_configuration_of_dnf() -> None:
    places = Repositories(
        ["file:/rpms", "https://mirror.invalid/$releasever"], ["/k1", "/k2"], "rocky", "9.4"
    )
    text = dnf.config(places)
    assert "gpgcheck=1\n" in text
    assert "platform:el9\n" in text
    assert "baseurl=file:///rpms\n" in text
    assert "baseurl=https://mirror.invalid/$releasever\n" in text
    assert text.count("gpgkey=file:///k1 file:///k2\n") == 2


def test_without_keys_signatures_are_not_checked() -> None:
    text = dnf.config(Repositories(["/rpms"], [], "fedora", "39"))
    assert "gpgcheck=0\n" in text
    assert "gpgkey" not in text
    assert "platform:f39\n" in text


def test_local_places_have_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "repodata").mkdir()
    (tmp_path / "repodata/repomd.xml").touch()
    key = tmp_path / "key"
    key.touch()
    dnf.check_local(Repositories([str(tmp_path), "/no/$releasever", "https://x"], [f"file:{key}"], "a", "1"))
    with pytest.raises(ValidationError, match=r"file:///no is no repository.*; /no-key is no key file"):
        dnf.check_local(Repositories(["file:///no"], ["/no-key"], "a", "1"))


def test_progress_of_dnf() -> None:
    shown: list[tuple[str, float]] = []
    progress = DnfProgress(lambda message, percent: shown.append((message, percent)), 0, 100)
    lines = [
        "Downloading Packages:",
        "  Preparing        :                                 1/1 ",
        "  Installing       : bash-5.1.8-9.el9.x86_64        1/4 ",
        "  Running scriptlet: bash-5.1.8-9.el9.x86_64        1/4 ",
        "  Installing       : zlib-1.2-9.el9.x86_64          4/4 ",
        "  Verifying        : zlib-1.2-9.el9.x86_64          1/4 ",
        "Complete!",
    ]
    assert [progress.line(line) for line in lines if progress] == [lines[0], *[None] * 5, "Complete!"]
    assert shown == [("installing bash-5.1.8-9.el9.x86_64", 25), ("installing zlib-1.2-9.el9.x86_64", 100)]


def test_language_packages() -> None:
    assert redhat.language_packages("C.UTF-8") == []
    assert redhat.language_packages("de_AT.UTF-8") == ["glibc-langpack-de"]


def test_menu_of_the_family() -> None:
    assert REDHAT.menu in REDHAT.make_menu


def test_no_builder_or_library_file_names_a_mirror() -> None:
    """A location is an argument, or read from the node: a host that moves must not be in here."""
    top = Path(__file__).resolve().parents[3] / "provisioner-scripts"
    files = [path for path in top.rglob("*.py") if path.name != "apt_sources.py"]
    assert len(files) > 20
    allowed = ("cloudinit.readthedocs.io", "169.254.169.254", "www.w3.org", "libvirt.org")
    for path in files:
        for word in path.read_text().replace('"', " ").split():
            if "://" in word and not any(name in word for name in allowed):
                assert "." not in word.split("://")[1].split("/")[0].strip("[]{}\\^$+*()'`,"), (
                    path.name,
                    word,
                )
