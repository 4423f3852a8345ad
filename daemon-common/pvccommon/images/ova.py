"""OVA archives, read in one pass as they arrive (DSP0243, "Distribution as a single file").

    ova = OvaReader(stream)            # reads as far as the OVF document: enough for a preview
    for member in ova.members():       # the files the OVF names, in the archive's order
        store(member)                  # member.read(n); what is left of it is skipped
    report = ova.finish()              # raises WrongInput unless all is there and as the manifest says

What is stored before `finish()` returns is not yet known to be right: the caller keeps it apart until then.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pvccommon.errors import WrongInput
from pvccommon.images.byte_source import PIECE_BYTES, drain, read_fully
from pvccommon.images.file_name import shown
from pvccommon.images.findings import Findings
from pvccommon.images.limits import DEFAULT_LIMITS, Limits
from pvccommon.images.manifest import ALGORITHMS, Digests, Manifest, parse_manifest
from pvccommon.images.ovf import parse_ovf
from pvccommon.images.ovf_model import Ovf, OvfFile
from pvccommon.images.tar_stream import TarMember, TarStream
from pvccommon.storage.pool import ByteSource

WHAT: Final = "read the OVA archive"
ORDER_HINT: Final = "archive it again, the OVF document first: tar -cf x.ova --format=ustar x.ovf x.mf x.vmdk"


class OvaMember:
    """A file of the archive that the OVF names; `file` is what the OVF says of it."""

    def __init__(self, member: TarMember, file: OvfFile, digests: Digests) -> None:
        self.name = member.name
        self.size_bytes = member.size_bytes
        self.file = file
        self._member = member
        self._digests = digests

    def read(self, length: int, /) -> bytes:
        """The next bytes, at most `length`; empty at the end of the file."""
        data = self._member.read(length)
        self._digests.update(data)
        return data


@dataclass(frozen=True)
class OvaReport:
    """`verified`: files whose digests were compared, with the algorithm; empty without a manifest."""

    verified: dict[str, str]
    warnings: tuple[str, ...]


class OvaReader:
    """One archive. The constructor reads the OVF document; it and everything else raise WrongInput."""

    def __init__(self, source: ByteSource, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._findings = Findings()
        self._tar = iter(TarStream(WHAT, source, limits))
        self._manifest: Manifest | None = None
        self._digests: dict[str, dict[str, str]] = {}
        self._verified: dict[str, str] = {}
        self._is_complete = False
        document = self._read_document()
        self.ovf: Ovf = parse_ovf(document, limits)
        self._files = {file.href: file for file in self.ovf.files}
        self._members = self._read_members()

    def members(self) -> Iterator[OvaMember]:
        """The files the OVF names. May be asked for again to go on after a pause."""
        return self._members

    def finish(self) -> OvaReport:
        """Read what is left; the verdict on the whole archive."""
        for _ in self._members:
            pass
        if not self._is_complete:
            raise WrongInput(WHAT, "an error ended the reading before")
        return OvaReport(dict(self._verified), (*self.ovf.warnings, *self._findings.warnings))

    # ---- the document

    def _read_document(self) -> bytes:
        member = next(self._tar, None)
        if member is None:
            raise WrongInput(WHAT, "the archive has no files")
        if not member.name.lower().endswith(".ovf"):
            raise WrongInput(
                WHAT, f"its first file is {shown(member.name)} instead of the OVF document", ORDER_HINT
            )
        return self._read_small(member, self._limits.ovf_bytes)

    def _read_small(self, member: TarMember, most: int) -> bytes:
        """The whole content of a small file, noted for the manifest."""
        if member.size_bytes > most:
            raise WrongInput(WHAT, f"the file {shown(member.name)} is larger than {most} bytes")
        data = read_fully(member, member.size_bytes)
        digests = Digests(ALGORITHMS)
        digests.update(data)
        self._digests[member.name] = digests.result()
        return data

    # ---- the rest

    def _read_members(self) -> Iterator[OvaMember]:
        for member in self._tar:
            suffix = member.name.lower().rpartition(".")[2]
            if member.name in self._files:
                yield from self._read_file(member, self._files[member.name])
            elif suffix == "ovf":
                raise WrongInput(WHAT, f"the archive has a second OVF document, {shown(member.name)}")
            elif suffix == "mf":
                self._read_manifest(member)
            else:
                self._pass_over(member, suffix)
        self._check_complete()

    def _read_file(self, member: TarMember, file: OvfFile) -> Iterator[OvaMember]:
        if file.size_bytes is not None and file.size_bytes != member.size_bytes:
            self._findings.warn(
                member.name, f"has {member.size_bytes} bytes; the OVF announces {file.size_bytes}"
            )
        digests = Digests(self._wanted(member.name))
        readable = OvaMember(member, file, digests)
        yield readable
        drain(readable)
        self._digests[member.name] = digests.result()
        self._verify(member.name)

    def _pass_over(self, member: TarMember, suffix: str) -> None:
        why = "certificates are not checked" if suffix == "cert" else "the OVF does not name it"
        self._findings.warn(member.name, f"is left out: {why}")
        digests = Digests(self._wanted(member.name))
        while data := member.read(PIECE_BYTES):
            digests.update(data)
        self._digests[member.name] = digests.result()
        self._verify(member.name)

    # ---- the manifest

    def _wanted(self, name: str) -> tuple[str, ...]:
        """Algorithms to compute: all as long as the manifest may still come."""
        if self._manifest is None:
            return ALGORITHMS
        line = self._manifest.lines.get(name)
        return (line[0],) if line else ()

    def _read_manifest(self, member: TarMember) -> None:
        if self._manifest is not None:
            raise WrongInput(WHAT, f"the archive has a second manifest, {shown(member.name)}")
        data = self._read_small(member, self._limits.manifest_bytes)
        self._manifest = parse_manifest(member.name, data, self._findings, self._limits)
        for name in self._digests:
            if name != member.name:
                self._verify(name)
        for name in self._files:
            if name not in self._manifest.lines:
                self._findings.wrong(member.name, f"has no digest of {shown(name)}")
        self._findings.raise_problems(WHAT)

    def _verify(self, name: str) -> None:
        """Compare a digest with the manifest, once both are known. The first mismatch ends the reading."""
        line = self._manifest.lines.get(name) if self._manifest else None
        if line is None:
            return
        algorithm, expected = line
        if self._digests[name][algorithm] != expected:
            self._findings.wrong(
                name, f"its {algorithm.upper()} is not what the manifest says; it is damaged"
            )
            self._findings.raise_problems(WHAT)
        self._verified[name] = algorithm

    def _check_complete(self) -> None:
        for name in self._files:
            if name not in self._digests:
                self._findings.wrong(name, "is named by the OVF, but not in the archive")
        if self._manifest is None:
            self._findings.warn("manifest", "there is none: whether the files are whole is not known")
        else:
            for name in self._manifest.lines:
                if name not in self._digests:
                    self._findings.wrong("manifest", f"{shown(name)} is listed, but not in the archive")
        self._findings.raise_problems(WHAT)
        self._is_complete = True
