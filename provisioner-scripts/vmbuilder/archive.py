"""Unpacking archives from outside: whatever they hold, nothing is written but below one directory."""

import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from vmbuilder.errors import ValidationError

_GIB: Final = 1024**3
# What unpacking a file compressed with `xz -9` takes is 65 MiB.
_XZ_MEMORY_BYTES: Final = 256 * 1024**2
_CHUNK_BYTES: Final = 1024 * 1024
_NAME_BYTES: Final = 1024
# User and group ids that a sandbox has.
_LARGEST_ID: Final = 65535


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold. The bytes are those of the unpacked tar file, headers and all."""

    total_bytes: int = 4 * _GIB
    members: int = 300_000


def unpack_txz(stream: BinaryIO, root: Path, limits: Limits | None = None) -> None:
    """Unpack a tar.xz below `root`, with owners, modes and times. It may add to what is there, not replace.

    Raises ValidationError for an archive that is damaged, too big, or names something outside. What was
    unpacked before stays: throw the directory away then.
    """
    limits = limits or Limits()
    reader = io.BufferedReader(_Unpacked(stream, limits.total_bytes), _CHUNK_BYTES)
    unpacking = _Unpacking(root, limits.total_bytes)
    try:
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for number, member in enumerate(archive, 1):
                if number > limits.members:
                    raise ValidationError(f"archive: more than {limits.members} members")
                unpacking.add(archive, member)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, OverflowError) as exc:
        raise ValidationError(f"archive: damaged, or no tar.xz: {exc}") from exc
    unpacking.finish()


@dataclass
class _Unpacking:
    """Where an archive's members go, and what is left to do at the end."""

    root: Path
    left_bytes: int
    # Set last, so that a directory that may not be written can be filled.
    directories: dict[Path, tarfile.TarInfo] = field(default_factory=dict)

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make one member; raises ValidationError for a kind or name that has no place here."""
        parts = _parts(member.name)
        if not (0 <= member.uid <= _LARGEST_ID and 0 <= member.gid <= _LARGEST_ID):
            raise ValidationError(f"archive: {_shown(member.name)} has an owner above {_LARGEST_ID}")
        self.left_bytes -= member.size  # also of holes, which take no room in the archive
        if self.left_bytes < 0:
            raise ValidationError("archive: holds more than is allowed")
        if not parts:
            return  # the root itself
        path = self._place(parts)
        if member.isdir():
            if not os.path.lexists(path):
                path.mkdir()
            self._require_directory(path)
            self.directories[path] = member
            return
        if os.path.lexists(path):
            raise ValidationError(f"archive: {_shown(member.name)} is there twice")
        if member.isreg():
            self._write(archive, member, path)
        elif member.issym():
            _check_symlink(parts, member.linkname)
            path.symlink_to(member.linkname)
        elif member.islnk():
            self._link(member, path)
            return
        else:
            raise ValidationError(f"archive: {_shown(member.name)} is no file, directory or link")
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        _set_mode_and_time(path, member)

    def finish(self) -> None:
        """Give the directories their owners, modes and times, inner ones first."""
        for path, member in sorted(self.directories.items(), reverse=True):
            os.chown(path, member.uid, member.gid)
            _set_mode_and_time(path, member)

    def _place(self, parts: tuple[str, ...]) -> Path:
        """Where a member goes; the directories above are made, and none of them may be a link."""
        path = self.root
        for part in parts[:-1]:
            path = path / part
            if not os.path.lexists(path):
                path.mkdir()
            self._require_directory(path)
        return path / parts[-1]

    def _require_directory(self, path: Path) -> None:
        if path.is_symlink() or not path.is_dir():
            shown = _shown(str(path.relative_to(self.root)))
            raise ValidationError(f"archive: {shown} would have to be a directory, and is none")

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        source = archive.extractfile(member)
        assert source is not None
        with path.open("xb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)

    def _link(self, member: tarfile.TarInfo, path: Path) -> None:
        parts = _parts(member.linkname)
        existing = self._place(parts) if parts else self.root
        if existing.is_symlink() or not existing.is_file():
            raise ValidationError(f"archive: {_shown(member.name)} is a link to what is no file before it")
        os.link(existing, path)


class _Unpacked(io.RawIOBase):
    """What an xz file holds, with a limit on its size and on the memory it takes to unpack it."""

    def __init__(self, stream: BinaryIO, limit_bytes: int) -> None:
        self._chunks = self._unpack(stream)
        self._rest = b""
        self._left = limit_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left -= len(chunk)
            if self._left < 0:
                raise ValidationError("archive: holds more than is allowed")
            self._rest = chunk
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    @staticmethod
    def _unpack(stream: BinaryIO) -> Iterator[bytes]:
        """Pieces of at most a MiB: a small file cannot become much memory. Several streams are one."""
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        data = stream.read(_CHUNK_BYTES)
        while data or not decompressor.needs_input:
            yield decompressor.decompress(data, _CHUNK_BYTES)
            data = b""
            if decompressor.eof:
                data = (decompressor.unused_data or stream.read(_CHUNK_BYTES)).lstrip(b"\0")
                if not data:
                    return
                decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
            elif decompressor.needs_input:
                data = stream.read(_CHUNK_BYTES)
        raise EOFError("it ends too early")


def _parts(name: str) -> tuple[str, ...]:
    """A member's name, split; raises ValidationError for one that leads elsewhere."""
    bad = name.startswith("/") or "\0" in name or len(name.encode(errors="surrogateescape")) > _NAME_BYTES
    parts = PurePosixPath(name).parts
    if bad or ".." in parts or not name:
        raise ValidationError(f"archive: {_shown(name)} is no name for a member")
    return parts


def _check_symlink(parts: tuple[str, ...], target: str) -> None:
    """A relative link may not climb above the root; an absolute one means the new system's root."""
    depth = len(parts) - 1
    for part in () if target.startswith("/") else PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise ValidationError(f"archive: {_shown('/'.join(parts))} is a link out of it")
    if not target or len(target.encode(errors="surrogateescape")) > _NAME_BYTES:
        raise ValidationError(f"archive: {_shown('/'.join(parts))} is a link to no name")


def _set_mode_and_time(path: Path, member: tarfile.TarInfo) -> None:
    if not member.issym():
        path.chmod(member.mode & 0o7777)
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _shown(name: str) -> str:
    """A name for a message: short, and without what a terminal would act on."""
    return ascii(name[:100])
