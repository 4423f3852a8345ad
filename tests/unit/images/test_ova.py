"""OVA archives: read in one pass, verified on the way, refused with a reason."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest
from archive_samples import (
    BLOCK,
    DISK_CONTENT,
    END,
    Endless,
    Trickle,
    archive,
    by_tarfile,
    entry,
    good_document,
    header,
    manifest,
    ova,
    pax,
)

from pvccommon.errors import Problem, WrongInput
from pvccommon.images.limits import Limits
from pvccommon.images.ova import OvaReader, OvaReport
from pvccommon.images.tar_stream import TarStream

DOCUMENT = good_document()
FILES = {"web.ovf": DOCUMENT, "disk1.vmdk": DISK_CONTENT}


def contents(data: bytes, limits: Limits | None = None) -> tuple[dict[str, bytes], OvaReport]:
    """What an archive holds, read in small pieces."""
    reader = OvaReader(Trickle(data), limits or Limits())
    found = {}
    for member in reader.members():
        pieces = []
        while piece := member.read(100):
            pieces.append(piece)
        found[member.name] = b"".join(pieces)
    return found, reader.finish()


def test_the_disk_comes_out_as_it_went_in() -> None:
    found, report = contents(ova())
    assert found == {"disk1.vmdk": DISK_CONTENT}
    assert report.verified == {}
    assert report.warnings == ("manifest: there is none: whether the files are whole is not known",)


def test_the_document_is_known_before_the_disks_are_read() -> None:
    stream = Trickle(ova(disk=bytes(10_000_000)), most=4096)
    reader = OvaReader(stream)
    assert [system.id for system in reader.ovf.systems] == ["web"]
    assert stream.given < 20_000


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_programs(tar_format: int) -> None:
    long_name = "disk-" + "x" * 150 + ".vmdk"
    document = DOCUMENT.replace(b"disk1.vmdk", long_name.encode())
    if tar_format != tarfile.USTAR_FORMAT:
        assert contents(by_tarfile({"web.ovf": document, long_name: b"abc"}, tar_format))[0] == {
            long_name: b"abc"
        }
    assert contents(by_tarfile({"./web.ovf": DOCUMENT, "./disk1.vmdk": b"abc"}, tar_format))[0] == {
        "disk1.vmdk": b"abc"
    }


def test_what_is_not_read_is_skipped_and_still_verified() -> None:
    reader = OvaReader(io.BytesIO(ova(after=[entry("web.mf", manifest(FILES))])))
    for member in reader.members():
        assert member.read(10) == DISK_CONTENT[:10]
    assert reader.finish().verified == {"web.ovf": "sha256", "disk1.vmdk": "sha256"}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize(
    "form",
    [
        "{a}({n})= {d}\n",
        "{a} ({n}) = {d}\n",
        "{a}({n})={d}\r\n",
        "\n{a}(./{n})= {d}\n",
    ],
)
def test_manifests(place: str, algorithm: str, form: str) -> None:
    mf = entry("web.mf", manifest(FILES, algorithm, form))
    _, report = contents(ova(before=[mf]) if place == "before" else ova(after=[mf]))
    assert report.verified == dict.fromkeys(FILES, algorithm)
    assert report.warnings == ()


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda text: text.replace("SHA256", "SHA2-256")])
def test_manifests_in_other_spellings(change: object) -> None:
    assert callable(change)
    lines = manifest({**FILES}).decode().splitlines()
    text = "\n".join(f"{change(line.split('(')[0])}({line.split('(')[1]}" for line in lines)
    digests_upper = "\n".join(f"{line.split('= ')[0]}= {line.split('= ')[1].upper()}" for line in lines)
    for variant in (text, digests_upper):
        assert contents(ova(before=[entry("web.mf", variant.encode())]))[1].verified


def test_a_certificate_and_other_files_are_left_out() -> None:
    more = [entry("web.cert", b"x" * 700), entry("readme.txt", b"hello")]
    found, report = contents(ova(after=more))
    assert found.keys() == {"disk1.vmdk"}
    assert "web.cert: is left out: certificates are not checked" in report.warnings
    assert "readme.txt: is left out: the OVF does not name it" in report.warnings


def test_files_that_are_left_out_are_verified_too() -> None:
    files = {**FILES, "readme.txt": b"hello"}
    good = ova(before=[entry("web.mf", manifest(files))], after=[entry("readme.txt", b"hello")])
    assert contents(good)[1].verified.keys() == files.keys()
    with pytest.raises(WrongInput, match="its SHA256 is not what the manifest says"):
        contents(good.replace(b"hello", b"hallo"))


def test_another_size_than_announced_is_a_warning() -> None:
    _, report = contents(ova(document=good_document(7)))
    assert "disk1.vmdk: has 1280 bytes; the OVF announces 7" in report.warnings


def test_sizes_beyond_octal() -> None:
    size = b"\x80" + len(DISK_CONTENT).to_bytes(11, "big")
    disk = header("disk1.vmdk", size) + DISK_CONTENT + bytes(-len(DISK_CONTENT) % BLOCK)
    assert contents(archive(entry("web.ovf", DOCUMENT), disk))[0] == {"disk1.vmdk": DISK_CONTENT}
    later = pax({"size": str(len(DISK_CONTENT))}) + header("disk1.vmdk", 0) + disk[BLOCK:]
    assert contents(archive(entry("web.ovf", DOCUMENT), later))[0] == {"disk1.vmdk": DISK_CONTENT}


def test_a_broken_archive_never_becomes_a_good_one() -> None:
    reader = OvaReader(io.BytesIO(ova(before=[entry("web.mf", manifest({**FILES, "disk1.vmdk": b"other"}))])))
    with pytest.raises(WrongInput, match="its SHA256 is not what the manifest says"):
        reader.finish()
    with pytest.raises(WrongInput, match="an error ended the reading before"):
        reader.finish()


def test_memory_does_not_grow_with_the_archive() -> None:
    """A file of a tebibyte is passed on piece by piece; here the first 64 MiB of it."""
    head = entry("web.ovf", DOCUMENT) + header("disk1.vmdk", b"\x80" + (2**40).to_bytes(11, "big"))
    stream = Endless(head)
    member = next(OvaReader(stream).members())
    assert member.size_bytes == 2**40
    assert sum(len(member.read(2**20)) for _ in range(64)) == 64 * 2**20
    assert stream.given <= len(head) + 64 * 2**20


OVF = entry("web.ovf", DOCUMENT)
GOOD_MF = manifest(FILES)

HOSTILE = {
    "nothing": (b"", "the archive is empty"),
    "few bytes": (b"abc", "it is not a tar archive"),
    "no archive": (b"\x7fELF" + bytes(2000), "it is not a tar archive"),
    "only the end": (END, "the archive has no files"),
    "gzip": (gzip.compress(ova()), "compressed with gzip"),
    "bzip2": (bz2.compress(ova()), "compressed with bzip2"),
    "xz": (lzma.compress(ova()), "compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
    "zip": (b"PK\x03\x04" + bytes(600), "compressed with zip"),
    "disk first": (archive(entry("disk1.vmdk", DISK_CONTENT), OVF), "first file is 'disk1.vmdk' instead of"),
    "manifest first": (archive(entry("web.mf", GOOD_MF), OVF), "first file is 'web.mf' instead of"),
    "two documents": (ova(after=[entry("b.ovf", DOCUMENT)]), "a second OVF document, 'b.ovf'"),
    "large document": (
        archive(entry("web.ovf", bytes(4 * 2**20 + 1))),
        "'web.ovf' is larger than 4194304 bytes",
    ),
    "bad document": (archive(entry("web.ovf", b"<x/>")), "root element is <x>"),
    "missing disk": (archive(OVF), "disk1.vmdk: is named by the OVF, but not in the archive"),
    "symbolic link": (ova(before=[entry("l", kind=b"2")]), "'l' is a symbolic link, not a file"),
    "hard link": (ova(before=[entry("l", kind=b"1")]), "'l' is a hard link"),
    "character device": (ova(before=[entry("l", kind=b"3")]), "'l' is a character device"),
    "block device": (ova(before=[entry("l", kind=b"4")]), "'l' is a block device"),
    "folder": (ova(before=[entry("l/", kind=b"5")]), "'l/' is a folder"),
    "pipe": (ova(before=[entry("l", kind=b"6")]), "'l' is a named pipe"),
    "unknown kind": (ova(before=[entry("l", kind=b"Z")]), "'l' is of an unknown type"),
    "GNU sparse": (ova(before=[entry("l", kind=b"S")]), "'l' is a GNU sparse file"),
    "pax sparse": (
        ova(before=[pax({"GNU.sparse.size": "1"}), entry("l")]),
        "the archive has a GNU sparse file",
    ),
    "absolute name": (ova(before=[entry("/etc/passwd")]), "'/etc/passwd' is an absolute path"),
    "parent": (ova(before=[entry("../x")]), "'../x' leads out of its folder by '..'"),
    "parent by pax": (ova(before=[pax({"path": "../x"}), entry("x")]), "'../x' leads out of its folder"),
    "parent by GNU": (ova(before=[entry("L", b"../x\0", kind=b"L"), entry("x")]), "'../x' leads out"),
    "absolute by prefix": (ova(before=[entry("x", prefix=b"/etc")]), "'/etc/x' is an absolute path"),
    "in a folder": (ova(before=[entry("disks/x")]), "'disks/x' is in a folder"),
    "no name": (ova(before=[entry("")]), "the file name '' is empty"),
    "control character": (ova(before=[entry("a\nb")]), "has a control or invisible character"),
    "not UTF-8": (ova(before=[entry(b"\xff\xfe")]), "is not UTF-8"),
    "long name": (ova(before=[pax({"path": "x" * 256}), entry("x")]), "is longer than 255 bytes"),
    "huge name": (ova(before=[entry("L", b"x" * 70_000, kind=b"L"), entry("x")]), "of 70000 bytes is larger"),
    "pax bomb": (
        ova(before=[header("p", 2**32, kind=b"x")]),
        "extension header of 4294967296 bytes is larger than 65536",
    ),
    "empty pax": (ova(before=[entry("p", kind=b"x")]), "an extension header of 0 bytes"),
    "pax upon pax": (ova(before=[pax({"a": "b"})] * 5), "more than 4 extension headers for one file"),
    "damaged pax": (
        ova(before=[entry("p", b"99 path=x\n", kind=b"x"), entry("x")]),
        "a pax header of the archive",
    ),
    "pax of length 0": (ova(before=[entry("p", b"0 path=x\n", kind=b"x"), entry("x")]), "pax header of the"),
    "pax without blank": (
        ova(before=[entry("p", b"xxxxxxxxxxx\n", kind=b"x"), entry("x")]),
        "pax header of the",
    ),
    "pax size": (
        ova(before=[pax({"size": "-1"}), entry("x")]),
        "a pax header of the archive has a wrong size",
    ),
    "global path": (ova(before=[pax({"path": "x"}, b"g")]), "global header of the archive sets the path"),
    "extension at the end": (archive(OVF, pax({"a": "b"})), "ends after an extension header"),
    "equal names": (ova(after=[entry("disk1.vmdk")]), "the archive has two files named 'disk1.vmdk'"),
    "equal by pax": (
        ova(after=[pax({"path": "disk1.vmdk"}), entry("x")]),
        "the archive has two files named 'disk1.vmdk'",
    ),
    "many files": (
        archive(OVF, *(entry(f"f{n}") for n in range(1001))),
        "the archive has more than 1000 files",
    ),
    "no number": (ova(before=[header("x", b"99999999999")]), "a header of the archive has a wrong size"),
    "negative size": (ova(before=[header("x", b"\xff" * 12)]), "a header of the archive has a wrong size"),
    "blank size": (ova(before=[header("x", b" " * 12)]), "a header of the archive has a wrong size"),
    "endless size": (
        ova(before=[header("x", b"\x80" + b"\x7f" * 11)]),
        "the file 'x' is larger than 17592186044416 bytes",
    ),
    "wrong checksum": (ova(before=[header("x", 0, checksum=1)]), "a wrong checksum"),
    "size too small": (
        archive(OVF, header("disk1.vmdk", BLOCK) + DISK_CONTENT + bytes(256)),
        "what follows a file is not a tar header",
    ),
    "size too large": (
        archive(OVF, header("disk1.vmdk", 99_999) + DISK_CONTENT),
        "ends inside the file 'disk1",
    ),
    "cut in a file": (ova()[: -len(END) - 1000], "ends inside the file 'disk1.vmdk'; it is cut off"),
    "cut in the padding": (ova()[: -len(END) - 10], "the archive ends inside a block; it is cut off"),
    "cut before the end": (ova()[: -len(END)], "the archive has no end mark; it is cut off"),
    "cut in the end": (ova()[:-BLOCK], "the archive has half an end mark; it is cut off"),
    "cut in a header": (ova()[: -len(END)] + header("x", 0)[:100], "ends inside a header"),
    "cut in an extension": (
        ova()[: -len(END)] + header("p", 600, kind=b"x") + bytes(30),
        "inside an extension",
    ),
    "data after the end": (ova() + b"garbage", "there is data after the end of the archive"),
    "another archive": (ova() + ova(), "there is data after the end of the archive"),
    "zeros without end": (ova() + bytes(17 * 2**20), "bytes follow the end of the archive"),
    "wrong digest": (
        ova(before=[entry("web.mf", manifest({**FILES, "disk1.vmdk": b"x"}))]),
        "disk1.vmdk: its SHA256 is not what the manifest says; it is damaged",
    ),
    "wrong digest, manifest last": (
        ova(after=[entry("web.mf", manifest({**FILES, "disk1.vmdk": b"x"}, "sha1"))]),
        "disk1.vmdk: its SHA1 is not what the manifest says",
    ),
    "wrong digest of the document": (
        ova(before=[entry("web.mf", manifest({**FILES, "web.ovf": b"x"}))]),
        "web.ovf: its SHA256 is not what the manifest says",
    ),
    "disk without digest": (
        ova(before=[entry("web.mf", manifest({"web.ovf": DOCUMENT}))]),
        "web.mf: has no digest of 'disk1.vmdk'",
    ),
    "digest without file": (
        ova(before=[entry("web.mf", manifest({**FILES, "b.vmdk": b""}))]),
        "'b.vmdk' is listed, but not in the archive",
    ),
    "MD5": (
        ova(before=[entry("web.mf", GOOD_MF.replace(b"SHA256", b"MD5"))]),
        "the digest 'MD5' is not one of SHA1, SHA256, SHA512",
    ),
    "short digest": (
        ova(before=[entry("web.mf", b"SHA256(web.ovf)= abcd\n")]),
        "the digest has 4 characters instead of 64",
    ),
    "no manifest line": (ova(before=[entry("web.mf", b"what is this\n")]), "is not of the form"),
    "two digests": (
        ova(before=[entry("web.mf", GOOD_MF + manifest({"web.ovf": b"x"}))]),
        "'web.ovf' is listed twice with different digests",
    ),
    "two manifests": (
        ova(after=[entry("a.mf", GOOD_MF), entry("b.mf", GOOD_MF)]),
        "a second manifest, 'b.mf'",
    ),
    "large manifest": (ova(before=[entry("web.mf", b"\n" * (2**20 + 1))]), "'web.mf' is larger than 1048576"),
    "manifest of many lines": (ova(before=[entry("web.mf", b"x\n" * 2000)]), "has more than 1000 lines"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_with_their_reason(name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(WrongInput) as caught:
        contents_quickly(data)
    assert reason in caught.value.message


def contents_quickly(data: bytes) -> OvaReport:
    return OvaReader(io.BytesIO(data)).finish()


def test_compressed_archives_get_a_hint() -> None:
    with pytest.raises(WrongInput) as caught:
        contents_quickly(gzip.compress(ova()))
    assert caught.value.hint == "decompress it first: gunzip FILE"


def test_problems_of_a_manifest_come_together() -> None:
    with pytest.raises(WrongInput) as caught:
        contents_quickly(ova(before=[entry("web.mf", b"nonsense\nMD5(web.ovf)= 00\n")]))
    assert [problem.path for problem in caught.value.problems] == ["web.mf line 1", "web.mf line 2", "web.mf"]
    assert Problem("web.mf", "has no digest of 'disk1.vmdk'") in caught.value.problems


@pytest.mark.parametrize("step", range(0, len(ova()), 97))
def test_an_archive_cut_anywhere_is_refused(step: int) -> None:
    with pytest.raises(WrongInput):
        contents_quickly(ova()[:step])


def test_a_damaged_byte_is_found() -> None:
    """With a manifest, whatever byte changes: either the reading fails, or it was padding."""
    data = ova(before=[entry("web.mf", GOOD_MF)])
    for place in range(0, len(data), 61):
        damaged = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        try:
            found, _ = contents(damaged)
        except WrongInput:
            continue
        assert found == {"disk1.vmdk": DISK_CONTENT}


def test_tar_members_can_be_read_whole() -> None:
    (member,) = list(TarStream("test", io.BytesIO(archive(entry("empty"))), Limits()))
    assert member.read(10) == b""
