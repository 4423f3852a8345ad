"""Sizes as people write them."""

import pytest
from marshmallow import ValidationError

from pvcapid.sizes import parse_size, size_text

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("512B", 512),
        ("4G", 4 * GIB),
        ("4g", 4 * GIB),
        ("4GiB", 4 * GIB),
        ("4 gb", 4 * GIB),
        ("1.5T", 1536 * GIB),
        ("0.5k", 512),
        (" 20M ", 20 * 1024**2),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "4X", "4iBG", "1e9", "G", "2E 1", "9" * 19, "1" * 18 + "E", "٤G"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (4 * GIB, "4G"),
        (1536 * 1024**2, "1536M"),
        (1024**4, "1T"),
        (1_000_448, "977K"),
        (513, "513B"),
        (0, "0B"),
    ],
)
def test_texts(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text
    if size_bytes:
        assert parse_size(text) == size_bytes
