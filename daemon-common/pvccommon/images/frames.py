"""What a decoder tells the process that writes the disks: small binary frames on a pipe.

    kind (1 byte) · length of the payload (4 bytes) · offset on the disk (8 bytes) · payload

    P  plan    JSON {disks: [{disk_id, size_bytes}], hardware, warnings}
    N  next    JSON {position}: what follows is data of this disk
    D  data    bytes for the disk, at the offset
    E  end     JSON {warnings, verified}: everything is there and in order
    X  error   JSON of a PvcError

The reader believes nothing: the decoder handles a stranger's bytes and may be in the stranger's hands.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pvccommon.errors import EnvironmentFault, error_from_dict
from pvccommon.images.byte_source import read_fully
from pvccommon.storage.pool import ByteSource

WHAT: Final = "read the image"
PLAN, NEXT, DATA, END, ERROR = b"P", b"N", b"D", b"E", b"X"
MAX_DATA_BYTES: Final = 2 * 1024**2
MAX_JSON_BYTES: Final = 1024**2
_HEAD: Final = struct.Struct("<cIQ")


class ByteSink(Protocol):
    """Something to write frames to, such as a buffered pipe."""

    def write(self, data: bytes | memoryview, /) -> Any: ...


@dataclass(frozen=True)
class Frame:
    """`document` of all kinds but data, `data` of that."""

    kind: bytes
    offset: int
    data: bytes
    document: dict[str, Any]


def write_data(sink: ByteSink, offset: int, data: bytes | memoryview) -> None:
    """Data of the current disk, in frames of bounded size."""
    for start in range(0, len(data), MAX_DATA_BYTES):
        piece = data[start : start + MAX_DATA_BYTES]
        sink.write(_HEAD.pack(DATA, len(piece), offset + start))
        sink.write(piece)


def write_document(sink: ByteSink, kind: bytes, document: dict[str, Any]) -> None:
    payload = json.dumps(document).encode()
    sink.write(_HEAD.pack(kind, len(payload), 0))
    sink.write(payload)


def read_frames(source: ByteSource) -> Iterator[Frame]:
    """All frames up to the end frame. Raises the decoder's own error, or EnvironmentFault for its death."""
    while True:
        head = read_fully(source, _HEAD.size)
        if len(head) < _HEAD.size:
            raise EnvironmentFault(WHAT, "the decoder ended before the image was complete")
        kind, length, offset = _HEAD.unpack(head)
        if length > (MAX_DATA_BYTES if kind == DATA else MAX_JSON_BYTES):
            raise EnvironmentFault(WHAT, f"the decoder sent a frame of {length} bytes")
        payload = read_fully(source, length)
        if len(payload) < length:
            raise EnvironmentFault(WHAT, "the decoder ended in the middle of a frame")
        frame = Frame(kind, offset, payload, {}) if kind == DATA else Frame(kind, 0, b"", _document(payload))
        if kind == ERROR:
            raise error_from_dict(frame.document)
        if kind not in (PLAN, NEXT, DATA, END):
            raise EnvironmentFault(WHAT, f"the decoder sent a frame of unknown kind {kind!r}")
        yield frame
        if kind == END:
            return


def _document(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except ValueError as exc:
        raise EnvironmentFault(WHAT, f"the decoder sent no JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise EnvironmentFault(WHAT, "the decoder sent JSON that is no object")
    return document
