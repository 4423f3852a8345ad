"""Reading the node's apt sources in both spellings."""

from pathlib import Path

import pytest

from vmbuilder.apt_sources import (
    AptSource,
    HostRelease,
    host_apt_sources,
    host_release,
    parse_deb822,
    parse_one_line,
)

BOOKWORM = HostRelease("bookworm", "debian")
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"

ONE_LINE = f"""\
# the main archive
deb http://archive.example/debian bookworm main non-free-firmware  # trailing remark
deb-src http://archive.example/debian bookworm main
deb [ arch=amd64 signed-by={KEY} ] https://mirror.example/debian bookworm-updates main
deb\thttp://security.example/debian-security  bookworm-security\tmain
#deb http://off.example/debian bookworm main
nonsense
deb cdrom:[Debian]/ bookworm main
deb http://flat.example/repo ./
"""

DEB822 = f"""\
# comment

Types: deb deb-src
URIs: http://a.example/debian
 http://b.example/debian
Suites: bookworm bookworm-updates
# comment inside
Components: main contrib
Signed-By: {KEY}


Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

types: deb
uris: http://c.example/debian
suites: bookworm
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_one_line_spelling() -> None:
    assert parse_one_line(ONE_LINE) == [
        AptSource("http://archive.example/debian", "bookworm", ("main", "non-free-firmware")),
        AptSource("https://mirror.example/debian", "bookworm-updates", ("main",), KEY),
        AptSource("http://security.example/debian-security", "bookworm-security", ("main",)),
        AptSource("cdrom:[Debian]/", "bookworm", ("main",)),
        AptSource("http://flat.example/repo", "./", ()),
    ]


def test_deb822_spelling() -> None:
    components = ("main", "contrib")
    assert parse_deb822(DEB822) == [
        AptSource("http://a.example/debian", "bookworm", components, KEY),
        AptSource("http://a.example/debian", "bookworm-updates", components, KEY),
        AptSource("http://b.example/debian", "bookworm", components, KEY),
        AptSource("http://b.example/debian", "bookworm-updates", components, KEY),
        AptSource("http://c.example/debian", "bookworm", ("main",), None),
    ]


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    return tmp_path


def suites(directory: Path, release: str) -> list[str]:
    return [f"{s.uri} {s.suite}" for s in host_apt_sources(release, BOOKWORM, str(directory))]


def test_only_the_archive_over_http_counts(apt: Path) -> None:
    (apt / "sources.list.d" / "ceph.list").write_text(
        "deb https://download.ceph.example/debian-reef bookworm main\n"
    )
    (apt / "sources.list.d" / "vendor.sources").write_text(
        "Types: deb\nURIs: https://v.example/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By: /etc/apt/v.gpg\n"
    )
    (apt / "sources.list.d" / "backup.list.save").write_text("deb http://old.example/debian bookworm main\n")
    (apt / "sources.list.d" / "next.list").write_text("deb http://archive.example/debian trixie main\n")
    assert suites(apt, "bookworm") == [
        "http://archive.example/debian bookworm",
        "https://mirror.example/debian bookworm-updates",
        "http://security.example/debian-security bookworm-security",
    ]


def test_another_release_has_its_suites_renamed(apt: Path) -> None:
    assert suites(apt, "trixie") == [
        "http://archive.example/debian trixie",
        "https://mirror.example/debian trixie-updates",
        "http://security.example/debian-security trixie-security",
    ]


def test_a_rolling_release_has_no_pockets(apt: Path) -> None:
    assert suites(apt, "sid") == ["http://archive.example/debian sid"]


def test_a_node_without_sources_leaves_the_choice_to_the_tool(tmp_path: Path) -> None:
    assert suites(tmp_path, "bookworm") == []


def test_line_keeps_the_key_and_may_change_components() -> None:
    source = AptSource("http://a.example/debian", "sid", ("main",), KEY)
    assert source.line() == f"deb [signed-by={KEY}] http://a.example/debian sid main"
    assert source.line(("main", "contrib")).endswith("sid main contrib")


def test_release_of_the_node(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('PRETTY_NAME="Ubuntu"\nID=ubuntu\nVERSION_CODENAME="noble"\n')
    assert host_release(str(path)) == HostRelease("noble", "ubuntu")
