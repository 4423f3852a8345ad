"""Manifests of OVF packages: a line with a digest for each file (DSP0243, "Distribution").

`SHA256(disk.vmdk)= 0123…` and what the tools around make of it: blanks, small letters, `SHA2-256`, CRLF.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from pvccommon.images.file_name import shown
from pvccommon.images.findings import Findings
from pvccommon.images.limits import Limits

ALGORITHMS: Final = ("sha1", "sha256", "sha512")
DIGEST_CHARS: Final = {"sha1": 40, "sha256": 64, "sha512": 128}
SPELLINGS: Final = {
    "sha1": "sha1", "sha-1": "sha1",
    "sha256": "sha256", "sha-256": "sha256", "sha2-256": "sha256",
    "sha512": "sha512", "sha-512": "sha512", "sha2-512": "sha512",
}  # fmt: skip

_LINE = re.compile(
    r"[ \t]*(?P<algorithm>[A-Za-z0-9-]{1,16})[ \t]*\((?P<name>.*)\)[ \t]*="
    r"[ \t]*(?P<digest>[0-9A-Fa-f]+)[ \t]*"
)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Manifest:
    """File name -> (algorithm, digest in small letters)."""

    lines: Mapping[str, tuple[str, str]]


@dataclass
class Digests:
    """Digests of one file as it passes: of the algorithms that may be asked for."""

    algorithms: tuple[str, ...]
    _hashes: dict[str, _Hash] = field(init=False)

    def __post_init__(self) -> None:
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in self.algorithms}

    def update(self, data: bytes) -> None:
        for each in self._hashes.values():
            each.update(data)

    def result(self) -> dict[str, str]:
        """Algorithm -> digest."""
        return {name: each.hexdigest() for name, each in self._hashes.items()}


def parse_manifest(name: str, data: bytes, findings: Findings, limits: Limits) -> Manifest:
    """Read a manifest; what is wrong is noted, each with its line."""
    lines: dict[str, tuple[str, str]] = {}
    texts = data.decode(errors="replace").split("\n")
    if len(texts) > limits.members + 2:
        findings.wrong(name, f"has more than {limits.members} lines")
        texts = []
    for number, text in enumerate(texts, 1):
        if text.strip():
            _read_line(f"{name} line {number}", text.rstrip("\r"), lines, findings)
    return Manifest(lines)


def _read_line(path: str, text: str, lines: dict[str, tuple[str, str]], findings: Findings) -> None:
    match = _LINE.fullmatch(text)
    if match is None:
        findings.wrong(path, f"{shown(text)} is not of the form 'SHA256(file)= digest'")
        return
    file, digest = match["name"].removeprefix("./"), match["digest"].lower()
    algorithm = SPELLINGS.get(match["algorithm"].lower())
    if algorithm is None:
        findings.wrong(path, f"the digest {shown(match['algorithm'])} is not one of SHA1, SHA256, SHA512")
    elif len(digest) != DIGEST_CHARS[algorithm]:
        findings.wrong(path, f"the digest has {len(digest)} characters instead of {DIGEST_CHARS[algorithm]}")
    elif lines.setdefault(file, (algorithm, digest)) != (algorithm, digest):
        findings.wrong(path, f"{shown(file)} is listed twice with different digests")
