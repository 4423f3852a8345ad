"""The content of a volume from a file of another format than raw: an import that ends as no image.

The same way as an image's, so that nothing with rights reads the file, and whatever dies leaves nothing:
while it comes there is an image in state `importing`; at the end its disk becomes the volume, or is copied
onto it.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pvccommon.models import ImageKind, Json
from pvccommon.storage.faults import in_use
from pvccommon.storage.pool import check_fits
from pvcnoded.imports.image_rows import ImportRequest
from pvcnoded.imports.staged import StagedImporter


@dataclass(frozen=True, kw_only=True)
class VolumeRequest(ImportRequest):
    """What becomes the content of a volume; `overwrite`: of one that exists."""

    pool: str
    volume: str
    overwrite: bool

    @property
    def what(self) -> str:
        return f"upload volume {self.pool}/{self.volume}"


def volume_request(arguments: Json) -> VolumeRequest:
    """From {pool, volume, format, size_bytes, overwrite}; size_bytes are the file's."""
    return VolumeRequest(
        name=f"upload-{secrets.token_hex(8)}",
        kind=ImageKind.DISK.value,
        format=arguments["format"],
        size_bytes=int(arguments["size_bytes"]),
        pool=arguments["pool"],
        volume=arguments["volume"],
        overwrite=bool(arguments["overwrite"]),
    )


class VolumeImporter(StagedImporter):
    """One import of that kind."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        assert isinstance(self._request, VolumeRequest)
        self._target: VolumeRequest = self._request

    def _accept(self, plan: Json) -> None:
        super()._accept(plan)
        if self._target.overwrite:
            size_bytes = self._plan["disks"][0]["size_bytes"]
            check_fits(self._target.what, size_bytes, self._pool.stat_volume(self._target.volume).size_bytes)

    def _make_clonable(self) -> None:
        """It is no image that clones are made of."""

    def _finish(self, digest: str, end: Json) -> None:
        self._check_not_ended()
        (made,), name = self._volumes, self._target.volume
        if self._target.overwrite:
            if self._pool.is_open(name):
                raise in_use(self._target.what)
            size_bytes = self._pool.stat_volume(made).size_bytes
            self._pool.write_stream(name, _Content(self._pool.export_stream(made)), size_bytes)
            self._pool.delete_volume(made)
        else:
            self._pool.rename_volume(made, name)
        self._rows.forget(self._image_id)


class _Content:
    """Pieces as a source."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        piece, self._left = self._left[:size], self._left[size:]
        return bytes(piece)
