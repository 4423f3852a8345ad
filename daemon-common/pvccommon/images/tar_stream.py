"""A tar archive as a stream: one pass, no seeking, bounded memory, plain files only.

POSIX.1-2001 pax archives and GNU tar's, https://www.gnu.org/software/tar/manual/html_node/Standard.html. Not
tarfile: that trusts sizes of extension headers, and keeps every member it has seen.
"""

from collections.abc import Iterator
from typing import Final, NoReturn

from pvccommon.errors import WrongInput
from pvccommon.images.byte_source import PIECE_BYTES, drain, read_fully
from pvccommon.images.file_name import name_problem, shown
from pvccommon.images.limits import KIB, MIB, Limits
from pvccommon.storage.pool import ByteSource

BLOCK_BYTES: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
MAX_EXTENSION_BYTES: Final = 64 * KIB
MAX_EXTENSIONS: Final = 4  # before one file
MAX_PADDING_BYTES: Final = 16 * MIB  # zeros after the end mark: tar fills up its last record

REGULAR: Final = (b"0", b"\0", b"7")
REFUSED_TYPES: Final = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device",
    b"5": "a folder", b"6": "a named pipe", b"S": "a GNU sparse file", b"D": "a GNU folder listing",
    b"M": "the rest of a file of another archive", b"V": "a volume label", b"N": "an old GNU long name",
    b"K": "a GNU long link",
}  # fmt: skip
COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"PK\x03\x04", "zip", "unzip"),
)


class TarMember:
    """One file; read it before the next one is asked for, what is left is skipped."""

    def __init__(self, tar: "TarStream", name: str, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self._tar = tar
        self._left = size_bytes

    def read(self, length: int, /) -> bytes:
        """The next bytes, empty at the end of the file. Raises WrongInput when the archive ends in it."""
        if self._left <= 0 or length == 0:
            return b""
        data = self._tar.source.read(min(length, self._left) if length > 0 else min(PIECE_BYTES, self._left))
        if not data:
            self._tar.refuse(f"the archive ends inside the file {shown(self.name)}; it is cut off")
        self._left -= len(data)
        if self._left == 0:
            self._tar.skip(-self.size_bytes % BLOCK_BYTES)
        return data


class TarStream:
    """The members of an archive, in order: iterate once. Everything wrong raises WrongInput."""

    def __init__(self, what: str, source: ByteSource, limits: Limits) -> None:
        self.what = what
        self.source = source
        self._limits = limits
        self._names: set[str] = set()

    def __iter__(self) -> Iterator[TarMember]:
        first = True
        while True:
            member = self._next(first)
            if member is None:
                return
            first = False
            yield member
            drain(member)

    def refuse(self, why: str, hint: str = "") -> NoReturn:
        raise WrongInput(self.what, why, hint)

    def skip(self, length: int) -> None:
        """Pass over padding."""
        if len(read_fully(self.source, length)) < length:
            self.refuse("the archive ends inside a block; it is cut off")

    def _next(self, first: bool) -> TarMember | None:
        """The next file, None after the last one."""
        extended: dict[str, bytes] = {}
        file_must_follow = False
        for _ in range(MAX_EXTENSIONS + 1):
            header = self._header(first)
            if header is None:
                if file_must_follow:
                    self.refuse("the archive ends after an extension header; it is cut off")
                return None
            first = False
            file_must_follow |= header[156:157] in (b"x", b"L")
            kind, size = header[156:157], self._number(header[124:136], "size")
            if kind in (b"x", b"g"):
                self._pax(kind, self._extension(size), extended)
            elif kind == b"L":
                extended["path"] = self._extension(size).rstrip(b"\0")
            else:
                return self._member(header, kind, size, extended)
        self.refuse(f"the archive has more than {MAX_EXTENSIONS} extension headers for one file")

    # ---- headers

    def _header(self, first: bool) -> bytes | None:
        """A valid header block, or None at the end mark."""
        block = read_fully(self.source, BLOCK_BYTES)
        if first:
            self._check_beginning(block)
        if not block:
            self.refuse("the archive has no end mark; it is cut off")
        if len(block) < BLOCK_BYTES:
            self.refuse("the archive ends inside a header; it is cut off")
        if block == ZERO_BLOCK:
            self._check_end()
            return None
        if block[257:262] != b"ustar":
            self.refuse("it is not a tar archive" if first else "what follows a file is not a tar header")
        self._check_sum(block)
        return block

    def _check_beginning(self, block: bytes) -> None:
        for magic, name, program in COMPRESSED:
            if block.startswith(magic):
                self.refuse(f"the archive is compressed with {name}", f"decompress it first: {program} FILE")
        if not block:
            self.refuse("the archive is empty")
        if len(block) < BLOCK_BYTES:
            self.refuse("it is not a tar archive")

    def _check_end(self) -> None:
        """After the first empty block there may only be zeros, and not many."""
        count = 0
        while piece := self.source.read(PIECE_BYTES):
            if piece.count(0) != len(piece):
                self.refuse("there is data after the end of the archive")
            count += len(piece)
            if count > MAX_PADDING_BYTES:
                self.refuse(f"more than {MAX_PADDING_BYTES} bytes follow the end of the archive")
        if count < BLOCK_BYTES:
            self.refuse("the archive has half an end mark; it is cut off")

    def _check_sum(self, block: bytes) -> None:
        plain = block[:148] + b" " * 8 + block[156:]
        if self._number(block[148:156], "checksum") not in (sum(plain), _signed_sum(plain)):
            self.refuse("a header of the archive has a wrong checksum; it is damaged")

    def _number(self, field: bytes, name: str) -> int:
        """Octal digits, or GNU's base 256 for sizes beyond 8 GiB."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if not digits or digits.strip(b"01234567"):
            self.refuse(f"a header of the archive has a wrong {name}")
        return int(digits, 8)

    # ---- extensions

    def _extension(self, size: int) -> bytes:
        if not 0 < size <= MAX_EXTENSION_BYTES:
            self.refuse(f"an extension header of {size} bytes is larger than {MAX_EXTENSION_BYTES}")
        data = read_fully(self.source, size + -size % BLOCK_BYTES)
        if len(data) < size + -size % BLOCK_BYTES:
            self.refuse("the archive ends inside an extension header; it is cut off")
        return data[:size]

    def _pax(self, kind: bytes, data: bytes, extended: dict[str, bytes]) -> None:
        for key, value in self._pax_records(data):
            if key.startswith("GNU.sparse"):
                self.refuse("the archive has a GNU sparse file")
            if key in ("path", "size"):
                if kind == b"g":
                    self.refuse(f"a global header of the archive sets the {key} of all files")
                extended[key] = value

    def _pax_records(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """`<length> <key>=<value>\\n`, the length being that of the whole record."""
        position = 0
        while position < len(data):
            blank = data.find(b" ", position, position + 8)
            digits = data[position:blank] if blank > 0 else b""
            end = position + int(digits) if digits.isdigit() else 0
            if not blank < end <= len(data) or data[end - 1 : end] != b"\n":
                self.refuse("a pax header of the archive is damaged")
            key, equals, value = data[blank + 1 : end - 1].partition(b"=")
            if not equals:
                self.refuse("a pax header of the archive is damaged")
            yield key.decode(errors="replace"), value
            position = end

    # ---- members

    def _member(self, header: bytes, kind: bytes, size: int, extended: dict[str, bytes]) -> TarMember:
        name = self._name(header, extended)
        if kind not in REGULAR:
            self.refuse(f"{shown(name)} is {REFUSED_TYPES.get(kind, 'of an unknown type')}, not a file")
        problem = name_problem(name)
        if problem:
            self.refuse(f"the file name {shown(name)} {problem}")
        if name in self._names:
            self.refuse(f"the archive has two files named {shown(name)}")
        self._names.add(name)
        if len(self._names) > self._limits.members:
            self.refuse(f"the archive has more than {self._limits.members} files")
        size = self._pax_size(extended, size)
        if size > self._limits.member_bytes:
            self.refuse(f"the file {shown(name)} is larger than {self._limits.member_bytes} bytes")
        return TarMember(self, name, size)

    def _pax_size(self, extended: dict[str, bytes], size: int) -> int:
        text = extended.get("size")
        if text is None:
            return size
        if not text.isdigit() or len(text) > 20:
            self.refuse("a pax header of the archive has a wrong size")
        return int(text)

    def _name(self, header: bytes, extended: dict[str, bytes]) -> str:
        name = header[0:100].partition(b"\0")[0]
        # GNU tar keeps other things where ustar has the name's first part.
        prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        name = extended.get("path", prefix + b"/" + name if prefix else name)
        try:
            return name.decode().removeprefix("./")
        except UnicodeDecodeError:
            self.refuse(f"the file name {name[:60]!r} is not UTF-8")


def _signed_sum(block: bytes) -> int:
    """Some old writers took bytes as signed."""
    return sum(byte - 256 if byte > 127 else byte for byte in block)
