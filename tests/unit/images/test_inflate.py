"""zlib streams from buffer to buffer: what is in them, and no byte beyond the room there is."""

import zlib

import pytest

from pvccommon.images.inflate import Buffer, InflateError, Inflater

TEXT = b"grain" * 10_000


def source(data: bytes) -> Buffer:
    buffer = Buffer(len(data))
    buffer.data[:] = data
    return buffer


def test_a_stream_goes_where_it_is_wanted() -> None:
    packed, target = zlib.compress(TEXT), Buffer(len(TEXT) + 20)
    for _ in range(2):
        count = Inflater().inflate(source(b"xx" + packed), 2, len(packed), target, 10, len(TEXT))
        assert count == len(TEXT)
        assert target.data == bytes(10) + TEXT + bytes(10)


def test_longer_streams_stop_where_the_room_ends() -> None:
    packed, target = zlib.compress(TEXT), Buffer(2 * len(TEXT))
    with pytest.raises(InflateError) as caught:
        Inflater().inflate(source(packed), 0, len(packed), target, 0, len(TEXT) - 1)
    assert caught.value.too_long
    assert target.data[len(TEXT) - 1 :] == bytes(len(TEXT) + 1)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"x" * 100,
        zlib.compress(TEXT)[:-1],
        zlib.compress(TEXT)[:-4] + bytes(4),  # another checksum
        zlib.compress(TEXT)[2:],
    ],
)
def test_what_is_no_whole_stream_is_refused(packed: bytes) -> None:
    with pytest.raises(InflateError):
        Inflater().inflate(source(packed), 0, len(packed), Buffer(len(TEXT)), 0, len(TEXT))


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 11), (5, 6), (10, 1), (0, -1)])
def test_nothing_outside_a_buffer_has_an_address(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="not within 10"):
        Buffer(10).address(offset, length)


def test_a_buffer_stays_where_it_is() -> None:
    buffer = Buffer(10)
    with pytest.raises(BufferError):
        buffer.data.extend(b"more")
