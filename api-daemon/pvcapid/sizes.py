"""Sizes as people write them: whole bytes, or a number with a binary unit."""

import re
from typing import Any

from marshmallow import ValidationError

from pvcapid.fields import Text

SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,6}))? ?([kmgtpe]?)(?:i?b)?", re.IGNORECASE)
UNITS = "KMGTPE"
MOST_BYTES = 1 << 60


class Size(Text):
    """A size in bytes: `4G`, `4GiB`, `4gb` (all binary), `512`, `1.5T`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(longest=32, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        return parse_size(super()._deserialize(value, attr, data, **kwargs))

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return value


def parse_size(text: str) -> int:
    """Bytes. Raises ValidationError."""
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise ValidationError("must be a number of bytes, or one with a unit: 512M, 4G, 1T")
    whole, part, unit = found.groups()
    factor = 1 << 10 * (UNITS.index(unit.upper()) + 1) if unit else 1
    size_bytes = int(whole) * factor + (int(part) * factor // 10 ** len(part) if part else 0)
    if not 0 < size_bytes <= MOST_BYTES:
        raise ValidationError(f"must be from 1 byte to {size_text(MOST_BYTES)}")
    return size_bytes


def size_text(size_bytes: int) -> str:
    """The size in the largest unit that gives a whole number: 4G, 1536M, 1000448B."""
    for exponent in range(len(UNITS), 0, -1):
        if size_bytes and size_bytes % (1 << 10 * exponent) == 0:
            return f"{size_bytes >> 10 * exponent}{UNITS[exponent - 1]}"
    return f"{size_bytes}B"
