"""The node's own apt sources, as the default place to install a Debian-like guest from.

Both spellings of sources.list(5) are read: one line each, and deb822 stanzas. Only the distribution's own
archive counts; what the operator has added for the node (a Ceph repository, say) is none of the guest's
business.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vmbuilder.errors import ValidationError

_ONE_LINE: Final = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)"
)
_POCKETS: Final = ("", "-updates", "-security", "/updates")
_ROLLING: Final = ("sid", "unstable", "testing", "devel", "rc-buggy", "experimental")
_ARCHIVE_PATHS: Final = ("debian", "debian-security", "ubuntu", "ubuntu-ports")
_SECURITY_HOST: Final = "security."  # its archive may be at the top of the host
_ARCHIVE_KEYRING: Final = re.compile(r".*/(debian|ubuntu)-archive-[^/]*")


@dataclass(frozen=True)
class AptSource:
    """One suite of one repository; `signed_by` is a path, or None for apt's own choice."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None

    def line(self, components: Sequence[str] = ()) -> str:
        """As a line of sources.list, with other components than its own if some are given."""
        options = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return " ".join((f"deb {options}{self.uri}", self.suite, *(components or self.components)))


@dataclass(frozen=True)
class HostRelease:
    """What the node itself runs: its codename and distribution ("debian", "ubuntu")."""

    codename: str
    distribution: str


def host_apt_sources(
    release: str, host: HostRelease | None = None, directory: str = "/etc/apt"
) -> list[AptSource]:
    """Sources for `release` made from the node's own, the suites renamed when it runs another release.

    Empty when the node has none of the kind; the tools then use their built-in mirror.
    """
    host = host or host_release()
    found = [source for source in read_sources(Path(directory)) if _is_archive(source, host.codename)]
    return [renamed for source in found for renamed in _for_release(source, host.codename, release)]


def host_release(path: str = "/etc/os-release") -> HostRelease:
    """What os-release(5) says; raises ValidationError when it names no release."""
    values: dict[str, str] = {}
    for line in Path(path).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values[key] = value.strip("\"'")
    codename = values.get("VERSION_CODENAME") or values.get("DEBIAN_CODENAME")
    if not codename:
        raise ValidationError("this node's release has no codename; name the release to install")
    return HostRelease(codename, values.get("ID", "debian"))


def read_sources(directory: Path) -> list[AptSource]:
    """Every binary source below an apt configuration directory; unreadable files count as empty."""
    sources: list[AptSource] = []
    for path in [directory / "sources.list", *sorted(directory.glob("sources.list.d/*"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            sources += parse_one_line(text)
        elif path.suffix == ".sources":
            sources += parse_deb822(text)
    return list(dict.fromkeys(sources))


def parse_one_line(text: str) -> list[AptSource]:
    """Sources from lines like "deb [signed-by=/k.gpg] http://mirror/debian trixie main"."""
    sources = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match:
            options = dict(item.split("=", 1) for item in (match["options"] or "").split() if "=" in item)
            key = _key_path(options.get("signed-by"))
            sources.append(AptSource(match["uri"], match["suite"], tuple(match["components"].split()), key))
    return sources


def parse_deb822(text: str) -> list[AptSource]:
    """Sources from stanzas with the fields Types, URIs, Suites, Components, Signed-By, Enabled."""
    sources = []
    for fields in _stanzas(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        components = tuple(fields.get("components", "").split())
        key = _key_path(fields.get("signed-by"))
        for uri in fields.get("uris", "").split():
            sources += [AptSource(uri, suite, components, key) for suite in fields.get("suites", "").split()]
    return sources


def _stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """The stanzas of a deb822 text, field names in lower case; indented lines continue a field."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in re.split(r"\n\s*\n", lines):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
            elif ":" in line:
                name = line.partition(":")[0].strip().lower()
                fields[name] = line.partition(":")[2].strip()
        if fields:
            yield fields


def _key_path(text: str | None) -> str | None:
    """The key file of a Signed-By field; a key written into the field itself is left to apt."""
    return text if text and text.startswith("/") and "\n" not in text and "," not in text else None


def _is_archive(source: AptSource, codename: str) -> bool:
    """Whether this is the distribution's own archive, for the release the node runs."""
    if source.suite not in {codename + pocket for pocket in _POCKETS} or "main" not in source.components:
        return False
    parts = urlsplit(source.uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    if source.signed_by:
        return bool(_ARCHIVE_KEYRING.fullmatch(source.signed_by))
    last = parts.path.rstrip("/").rpartition("/")[2]
    return last in _ARCHIVE_PATHS or (not last and parts.hostname.startswith(_SECURITY_HOST))


def _for_release(source: AptSource, codename: str, release: str) -> Iterable[AptSource]:
    """The source with its suite renamed; nothing for a pocket the other release does not have."""
    pocket = source.suite.removeprefix(codename)
    if not (pocket and release in _ROLLING):
        yield AptSource(source.uri, release + pocket, source.components, source.signed_by)
