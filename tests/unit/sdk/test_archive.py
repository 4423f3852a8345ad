"""Archives and files from outside: what is taken, and everything that is refused."""

import hashlib
import io
import lzma
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vmbuilder import archive, download
from vmbuilder.archive import Limits
from vmbuilder.errors import ProvisioningError, ValidationError


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, len(content), 0o755
    info.uid, info.gid = os.getuid(), os.getgid()
    return info


def packed(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", preset=0, format=tarfile.PAX_FORMAT) as made:
        for info in members:
            made.addfile(info, io.BytesIO(content if info.size else b""))
    return stream.getvalue()


def unpack(data: bytes, root: Path, limits: Limits | None = None) -> None:
    archive.unpack_txz(io.BytesIO(data), root, limits)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With room above it, to see what would get out."""
    path = tmp_path / "above" / "root"
    path.mkdir(parents=True)
    return path


def test_files_directories_and_links(root: Path) -> None:
    directory = member("./deep", tarfile.DIRTYPE)
    directory.mode = 0o555
    text = member("./deep/er/file", content=b"text")
    text.mode, text.mtime = 0o4711, 1_000_000
    links = (member("abs", tarfile.SYMTYPE, "/var/x"), member("deep/up", tarfile.SYMTYPE, "../abs"))
    unpack(
        packed(directory, text, *links, member("hard", tarfile.LNKTYPE, "deep/er/file"), content=b"text"),
        root,
    )
    found = (root / "deep/er/file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime, found.st_nlink) == (0o4711, 1_000_000, 2)
    assert stat.S_IMODE((root / "deep").stat().st_mode) == 0o555
    assert os.readlink(root / "abs") == "/var/x"
    assert (root / "hard").read_bytes() == b"text"
    (root / "deep").chmod(0o755)


OWNER = member("file")
OWNER.uid = 70000
NEGATIVE = member("file")
NEGATIVE.gid = -1
ENORMOUS_TIME = member("file")
ENORMOUS_TIME.pax_headers = {"mtime": "1e300"}
HOLES = member("file")
HOLES.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0"} | {
    "GNU.sparse.size": str(2**45)
}

HOSTILE = {
    "absolute": ((member("/etc/passwd"),), "no name"),
    "parent": ((member("../evil"),), "no name"),
    "parent inside": ((member("a/../../evil"),), "no name"),
    "too long": ((member("n" * 1025),), "no name"),
    "through a link": ((member("a", tarfile.SYMTYPE, "/tmp"), member("a/evil")), "have to be a directory"),
    "through a relative link": (
        (member("a", tarfile.SYMTYPE, "b"), member("a/evil")),
        "have to be a directory",
    ),
    "directory over a link": (
        (member("a", tarfile.SYMTYPE, "b"), member("a", tarfile.DIRTYPE)),
        "have to be",
    ),
    "link out": ((member("a/b", tarfile.SYMTYPE, "../../evil"),), "a link out"),
    "link to nothing": ((member("a", tarfile.SYMTYPE, ""),), "to no name"),
    "hard link out": ((member("a", tarfile.LNKTYPE, "../evil"),), "no name"),
    "hard link absolute": ((member("a", tarfile.LNKTYPE, "/etc/passwd"),), "no name"),
    "hard link to nothing": ((member("a", tarfile.LNKTYPE, "b"),), "no file before"),
    "hard link to a link": (
        (member("b", tarfile.SYMTYPE, "/x"), member("a", tarfile.LNKTYPE, "b")),
        "no file before",
    ),
    "device": ((member("a", tarfile.CHRTYPE),), "no file, directory or link"),
    "block device": ((member("a", tarfile.BLKTYPE),), "no file, directory or link"),
    "pipe": ((member("a", tarfile.FIFOTYPE),), "no file, directory or link"),
    "twice": ((member("a"), member("a")), "there twice"),
    "file as directory": ((member("a"), member("a/b")), "have to be a directory"),
    "owner": ((OWNER,), "owner"),
    "negative owner": ((NEGATIVE,), "owner|damaged"),
    "time": ((ENORMOUS_TIME,), "damaged"),
    "holes": ((HOLES,), "more than is allowed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_member_is_refused(name: str, root: Path) -> None:
    members, words = HOSTILE[name]
    try:
        data = packed(*members)
    except (OverflowError, ValueError) as exc:
        pytest.fail(f"the test cannot make this archive: {exc}")
    with pytest.raises(ValidationError, match=words):
        unpack(data, root)
    assert [path.name for path in root.parent.iterdir()] == ["root"]


def test_bomb_is_stopped_early(root: Path) -> None:
    large = packed(member("a", content=bytes(5 * 1024**2)), content=bytes(5 * 1024**2))
    with pytest.raises(ValidationError, match="more than is allowed"):
        unpack(large, root, Limits(total_bytes=4 * 1024**2))


def test_too_many_members_are_refused(root: Path) -> None:
    with pytest.raises(ValidationError, match="more than 3 members"):
        unpack(packed(*[member(str(number)) for number in range(4)]), root, Limits(members=3))


@pytest.mark.parametrize("data", [b"", b"no archive", packed(member("a"))[:-40]])
def test_damaged_archive_is_refused(data: bytes, root: Path) -> None:
    with pytest.raises(ValidationError, match="damaged, or no tar"):
        unpack(data, root)


def test_several_streams_are_one(root: Path) -> None:
    data = lzma.decompress(packed(member("a", content=b"text"), content=b"text"))
    unpack(lzma.compress(data[:700]) + lzma.compress(data[700:]), root)
    assert (root / "a").read_bytes() == b"text"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_file_is_opened_when_its_sum_is_right(tmp_path: Path, served: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    wanted = hashlib.sha256(b"content").hexdigest()
    for place in (str(tmp_path / "file"), f"{served}/file"):
        with download.opened(place, wanted.upper(), limit_bytes=7) as stream:
            assert stream.read() == b"content"
        with pytest.raises(ValidationError, match="SHA-256"), download.opened(place, "0" * 64, limit_bytes=7):
            pass
        with pytest.raises(ValidationError, match="allowed"), download.opened(place, wanted, limit_bytes=6):
            pass


def test_missing_file_is_an_error(tmp_path: Path, served: str) -> None:
    with pytest.raises(ValidationError, match="No such file"), download.opened("/absent", "0", limit_bytes=1):
        pass
    with (
        pytest.raises(ProvisioningError, match="not found"),
        download.opened(f"{served}/x", "0", limit_bytes=1),
    ):
        pass
