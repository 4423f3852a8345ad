"""Looks at an image that is a block device and prints what it is, as a line of JSON.

`python3 -m pvccommon.images.inspector DEVICE FORMAT SIZE MAX_VIRTUAL_BYTES`, run without rights (see
`pvcnoded.imports.confined`): {"virtual_bytes", "warnings"} or {"error"}. SIZE is that of the file in bytes,
which the device may be larger than by a part of a sector.
"""

import json
import os
import sys
from dataclasses import replace
from typing import Any

from pvccommon.errors import Internal, PvcError
from pvccommon.images.byte_reader import FileReader
from pvccommon.images.formats import inspect_image
from pvccommon.images.limits import DEFAULT_LIMITS


class BeginningReader(FileReader):
    """The first bytes of a file."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        super().__init__(fd)
        self.size_bytes = min(self.size_bytes, size_bytes)

    def read_at(self, offset: int, length: int) -> bytes:
        return super().read_at(offset, max(0, min(length, self.size_bytes - offset)))


def inspect(device: str, image_format: str, size_bytes: int, max_virtual_bytes: int) -> dict[str, Any]:
    """The document that is printed."""
    limits = replace(DEFAULT_LIMITS, virtual_bytes=max_virtual_bytes)
    fd = os.open(device, os.O_RDONLY)
    try:
        info = inspect_image(image_format, BeginningReader(fd, size_bytes), limits)
    except PvcError as exc:
        return {"error": exc.to_dict()}
    except (MemoryError, RecursionError, ValueError, OSError) as exc:
        return {"error": Internal("inspect the image", f"{type(exc).__name__}: {exc}").to_dict()}
    finally:
        os.close(fd)
    return {"virtual_bytes": info.virtual_bytes, "warnings": list(info.warnings)}


if __name__ == "__main__":
    found = inspect(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(found))
