"""Installing packages into a new system with this node's own dnf.

dnf and rpm run outside the target, on its directory; only packages' scripts run inside.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmbuilder.command import run
from vmbuilder.errors import ValidationError
from vmbuilder.target import Target

_CONFIG: Final = Path("/tmp/dnf.conf")
_MACROS: Final = Path("/root/.rpmmacros")
# dnf puts it below the target, where there is more room than here.
_CACHE: Final = "/var/cache/dnf"
_LOGS: Final = ("/var/log/dnf*.log*", "/var/log/hawkey.log*")

_MAIN: Final = """\
[main]
gpgcheck={check}
localpkg_gpgcheck={check}
install_weak_deps=False
keepcache=False
plugins=False
reposdir=/nonexistent
varsdir=/nonexistent
cachedir={cache}
module_platform_id=platform:{platform}
"""
_REPOSITORY: Final = """
[repository-{number}]
name=repository {number}
baseurl={url}
enabled=1
{keys}"""
# rpm must not touch what is mounted into the target: it may not be changed here, and is not part of it.
_MACRO_LINES: Final = "%_dbpath {database}\n%_netsharedpath /dev:/proc:/sys:/run\n"

_STEP: Final = re.compile(r"\s+(Installing|Running scriptlet|Verifying)\s*: (\S+)\s+(\d+)/(\d+)")
_BORING: Final = re.compile(
    r"\s*$|\s*(Running scriptlet|Verifying|Installing|Preparing)\s*:|=+$|-+$|\[SKIPPED\]"
)
_SMALLEST_STEP: Final = 2.0


@dataclass(frozen=True)
class Repositories:
    """Where packages come from. `keys` is empty: their signatures are not checked."""

    urls: Sequence[str]
    keys: Sequence[str]
    distribution: str
    release: str


def install(
    target: Target,
    packages: Sequence[str],
    repositories: Repositories,
    database: str,
    on_line: Callable[[str], str | None] | None = None,
) -> None:
    """Install packages and what they need. `database`: where the target's own rpm looks for its database.

    Needs the target's system mounts. Raises CommandFailed.
    """
    _CONFIG.write_text(config(repositories))
    _MACROS.write_text(_MACRO_LINES.format(database=database))
    options = [f"--config={_CONFIG}", f"--installroot={target.root}", f"--releasever={repositories.release}"]
    run(["dnf", "--assumeyes", *options, "install", *packages], on_line=on_line)
    tidy(target)


def install_inside(target: Target, packages: Sequence[str], on_line: Callable[[str], str | None]) -> None:
    """Install packages with the target's own dnf, from the repositories it knows. Needs its system mounts."""
    target.copy_resolver()
    argv = ["dnf", "--assumeyes", "--setopt=install_weak_deps=False", "install", *packages]
    run(argv, chroot=target.root, on_line=on_line)
    tidy(target)


def tidy(target: Target) -> None:
    """Remove what dnf has downloaded and logged."""
    run(["rm", "-rf", "--one-file-system", target.path(_CACHE)], timeout_s=60)
    target.remove(*_LOGS)


def config(repositories: Repositories) -> str:
    """The text of dnf.conf(5)."""
    keys = "gpgkey=" + " ".join(map(url_of, repositories.keys)) + "\n" if repositories.keys else ""
    family = "f" if repositories.distribution == "fedora" else "el"
    platform = family + repositories.release.partition(".")[0]
    text = _MAIN.format(check=int(bool(keys)), cache=_CACHE, platform=platform)
    for number, url in enumerate(repositories.urls, 1):
        text += _REPOSITORY.format(number=number, url=url_of(url), keys=keys)
    return text


def url_of(place: str) -> str:
    """A path, or file: with one slash, as the URL that dnf understands; other URLs as they are."""
    return f"file:///{_plain(place)}" if place.startswith(("/", "file:")) else place


def check_local(repositories: Repositories) -> None:
    """Raise ValidationError for directories and key files on this node that a build cannot see."""
    problems = []
    for url in filter(is_local, repositories.urls):
        if not (_path(url) / "repodata/repomd.xml").is_file():
            problems.append(f"{url} is no repository that a build can see (it has no repodata/repomd.xml)")
    for key in filter(is_local, repositories.keys):
        if not _path(key).is_file():
            problems.append(f"{key} is no key file that a build can see")
    if problems:
        hidden = "directories such as /srv, /home, /root and /tmp are hidden, see docs/security.md"
        raise ValidationError(f"{'; '.join(problems)} ({hidden})")


def is_local(place: str) -> bool:
    """Whether a place is on this node. One with variables such as $releasever is left to dnf."""
    return place.startswith(("/", "file:")) and "$" not in place


def _path(place: str) -> Path:
    return Path("/", _plain(place))


def _plain(place: str) -> str:
    return place.removeprefix("file:").lstrip("/")


class DnfProgress:
    """Give `line` to run(on_line=…). Reports from `first` to `last` percent; chatter stays out of the log."""

    def __init__(self, report: Callable[[str, float], object], first: float, last: float) -> None:
        self._report = report
        self._first, self._last, self._shown = first, last, first

    def line(self, text: str) -> str | None:
        """Take note of one line of output; returns what to log of it."""
        step = _STEP.match(text)
        if step and step[1] == "Installing":
            percent = self._first + (self._last - self._first) * int(step[3]) / int(step[4])
            if percent >= self._shown + _SMALLEST_STEP:
                self._shown = percent
                self._report(f"installing {step[2]}", round(percent))
        return None if _BORING.match(text) else text
