"""The OVF document at the beginning of a local OVA archive, for a preview. Nothing else of it is read."""

import io
import tarfile
from typing import BinaryIO

from pvc.errors import CliError, WrongInput
from pvc.output import printable

# The server's own limit for a document.
MAX_DOCUMENT_BYTES = 4 << 20
# Headers before it: honest ones have a few hundred bytes, and tarfile reads them whole, whatever their size.
MAX_HEADER_BYTES = 16 << 10
BLOCK_BYTES = 512
SHOWN_CHARS = 60


class LimitedReader(io.BufferedIOBase):
    """Reads a file up to a limit; more is an error of the archive, whatever its headers promise."""

    def __init__(self, file: BinaryIO, limit_bytes: int) -> None:
        self._file = file
        self.left_bytes = limit_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.left_bytes:
            raise tarfile.ReadError("its headers are too long")
        self.left_bytes -= size
        return self._file.read(size)


def read_ovf_document(file: BinaryIO, name: str) -> str:
    """The text of the archive's first file. Raises WrongInput for what is no OVA."""
    reader = LimitedReader(file, MAX_HEADER_BYTES)
    try:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=BLOCK_BYTES) as archive:
            member = archive.next()
            check_document(member, name)
            if member is None:
                raise AssertionError("checked")
            reader.left_bytes = member.size + BLOCK_BYTES
            content = archive.extractfile(member)
            data = content.read(member.size) if content else b""
        if len(data) < member.size:
            raise tarfile.ReadError("it is cut off")
        return data.decode("utf-8-sig" if not data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-16")
    except OSError as error:
        raise CliError(f"cannot read {name}", why=error.strerror or str(error), kind="environment") from error
    # tarfile lets errors of its own parsing of numbers and text through.
    except (tarfile.TarError, ValueError, ArithmeticError, EOFError) as error:
        raise WrongInput(
            f"cannot read the OVA archive {name}",
            why=printable(str(error))[:200],
            hint="an OVA is an uncompressed tar archive whose first file is the OVF document",
        ) from error


def check_document(member: tarfile.TarInfo | None, name: str) -> None:
    """The rules of the server's own reader, as far as the preview needs them."""
    if member is None:
        raise tarfile.ReadError("it has no files")
    shown = repr(member.name if len(member.name) <= SHOWN_CHARS else member.name[:SHOWN_CHARS] + "…")
    if not member.isreg() or member.issparse():
        raise tarfile.ReadError(f"its first entry, {shown}, is no plain file")
    if not member.name.lower().endswith(".ovf"):
        raise tarfile.ReadError(f"its first file is {shown} instead of the OVF document")
    if not 0 < member.size <= MAX_DOCUMENT_BYTES:
        raise tarfile.ReadError(
            f"the OVF document {shown} has {member.size} bytes; at most {MAX_DOCUMENT_BYTES} are read"
        )
