"""zlib streams whose largest size is known, by libdeflate(3): in half of zlib's time, from buffer to buffer.

The library writes into the memory of a bytearray; the lengths are checked here, before it is called.
"""

import ctypes
import weakref
from typing import Final

LIBRARY: Final = "libdeflate.so.0"
# enum libdeflate_result; any other is for what is damaged, cut off, or no such stream.
SUCCESS, NO_ROOM = 0, 3


class InflateError(Exception):
    """It is damaged, cut off, or no such stream; with `too_long` it may also be longer than the room."""

    def __init__(self, *, too_long: bool) -> None:
        super().__init__("it is longer than it may be" if too_long else "it is damaged")
        self.too_long = too_long


class Buffer:
    """Bytes at a fixed address."""

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        # Holding this keeps the bytearray from being resized, and so from being moved.
        self._memory = (ctypes.c_char * size_bytes).from_buffer(self.data)
        self._address = ctypes.addressof(self._memory)

    def address(self, offset: int, length: int) -> int:
        """Where `length` bytes from the offset stand."""
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise ValueError(f"{length} bytes at {offset} are not within {len(self.data)}")
        return self._address + offset


class Inflater:
    """Not to be used by two threads at a time. Raises OSError when the library is missing."""

    def __init__(self) -> None:
        library = ctypes.CDLL(LIBRARY)
        library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
        library.libdeflate_free_decompressor.argtypes = [ctypes.c_void_p]
        self._inflate = library.libdeflate_zlib_decompress
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._inflate.argtypes = [pointer, pointer, size, pointer, size, ctypes.POINTER(size)]
        self._inflated = size()
        self._state = library.libdeflate_alloc_decompressor()
        if not self._state:
            raise MemoryError
        weakref.finalize(self, library.libdeflate_free_decompressor, self._state)

    def inflate(self, source: Buffer, start: int, length: int, target: Buffer, at: int, room: int) -> int:
        """How many bytes the stream in `length` bytes of the source has; `at` is where they go.

        Its checksum is compared. Raises InflateError.
        """
        result = self._inflate(
            self._state,
            source.address(start, length),
            length,
            target.address(at, room),
            room,
            ctypes.byref(self._inflated),
        )
        if result != SUCCESS:
            raise InflateError(too_long=result == NO_ROOM)
        return self._inflated.value
