"""Tar archives, header by header, so that every field can lie."""

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence

from ovf_samples import ovf

BLOCK = 512
END = bytes(2 * BLOCK)
DISK_CONTENT = bytes(range(256)) * 5  # 1280 bytes: two blocks and a half


def header(
    name: str | bytes,
    size: int | bytes,
    *,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[0:100] = (name if isinstance(name, bytes) else name.encode())[:100].ljust(100, b"\0")
    block[100:124] = b"0000644\0" * 3
    block[124:136] = field.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[345:500] = prefix.ljust(155, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block) if checksum is None else checksum)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def entry(name: str | bytes, content: bytes = b"", **fields: object) -> bytes:
    return header(name, len(content), **fields) + padded(content)  # type: ignore[arg-type]  # passed on


def pax(records: Mapping[str, str], kind: bytes = b"x") -> bytes:
    """An extension header before a file."""
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        lines += str(length).encode() + rest
    return entry("PaxHeader", lines, kind=kind)


def manifest(files: Mapping[str, bytes], algorithm: str = "sha256", form: str = "{a}({n})= {d}\n") -> bytes:
    return "".join(
        form.format(a=algorithm.upper(), n=name, d=hashlib.new(algorithm, content).hexdigest())
        for name, content in files.items()
    ).encode()


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + END


def ova(
    *,
    document: bytes | None = None,
    disk: bytes = DISK_CONTENT,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
) -> bytes:
    """A good archive of `web.ovf` and `disk1.vmdk`, with other entries before or after the disk."""
    document = document or good_document(len(disk))
    return archive(entry("web.ovf", document), *before, entry("disk1.vmdk", disk), *after)


def good_document(size: int = len(DISK_CONTENT)) -> bytes:
    return ovf(files=f'<File ovf:id="file1" ovf:href="disk1.vmdk" ovf:size="{size}"/>')


def by_tarfile(files: Mapping[str, bytes], tar_format: int) -> bytes:
    """The same by the standard library, in another of tar's formats."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tar_format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


class Trickle:
    """A stream that gives few bytes at a time, and counts them."""

    def __init__(self, data: bytes, most: int = 7) -> None:
        self._data = io.BytesIO(data)
        self._most = most
        self.given = 0

    def read(self, length: int, /) -> bytes:
        data = self._data.read(min(length, self._most))
        self.given += len(data)
        return data


class Endless:
    """A file of the archive that never ends."""

    def __init__(self, beginning: bytes) -> None:
        self._beginning = io.BytesIO(beginning)
        self.given = 0

    def read(self, length: int, /) -> bytes:
        data = self._beginning.read(length) or bytes(length)
        self.given += len(data)
        return data
