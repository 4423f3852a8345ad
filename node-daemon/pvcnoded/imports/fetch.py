"""Images that this node fetches by URL: a process without rights speaks with the server."""

import json
import os
import select
import subprocess
import threading
import time

from pvccommon.errors import EnvironmentFault, TimedOut, WrongInput, error_from_dict
from pvccommon.images.fetcher import check_url
from pvcnoded.imports.confined import confined_program
from pvcnoded.imports.image_rows import ImportRequest
from pvcnoded.imports.imports import GIB, ImageImport, Imports

FETCHER = "pvccommon.images.fetcher"
LONGEST_LINE = 64 * 1024
CPU_S = 24 * 3600  # encrypted bytes cost time; the clock is the limit
ANSWER_S = 300.0


class FetchedFile:
    """What the fetching process writes: a line about the file, then the file."""

    def __init__(self, program: "subprocess.Popen[bytes]", what: str, timeout_s: float) -> None:
        assert program.stdout is not None
        self._fd = program.stdout.fileno()
        self._what = what
        self._deadline = time.monotonic() + timeout_s

    def size_bytes(self, max_bytes: int) -> int:
        """Read the line. Raises what went wrong."""
        try:
            document = json.loads(self._line())
            error = error_from_dict(document["error"]) if "error" in document else None
            size_bytes = 0 if error else int(document["size_bytes"])
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise EnvironmentFault(self._what, "the fetching process ended early") from exc
        if error is not None:
            raise error
        if size_bytes > max_bytes:
            why = f"its {size_bytes} bytes are over the limit of {max_bytes}"
            raise WrongInput(self._what, why, "raise images.max_virtual_gib in the configuration")
        return size_bytes

    def read(self, size: int, /) -> bytes:
        """Raises TimedOut."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
            raise TimedOut(self._what, "the server has taken too long", "images.fetch_timeout_s limits it")
        return os.read(self._fd, size)

    def _line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            byte = self.read(1)
            if not byte:
                break
            line += byte
        return bytes(line)


def fetch_image(imports: Imports, pool: str, request: ImportRequest) -> int:
    """Begin to fetch an image whose `source` is its URL; its id. The row tells what becomes of it.

    Raises WrongInput, Exists, Busy.
    """
    check_url(request.source)
    begun = imports.begin(pool, request, keep_failed=True)
    threading.Thread(target=_fetch, args=(imports, begun), name=request.what, daemon=True).start()
    return begun.image_id


def _fetch(imports: Imports, begun: ImageImport) -> None:
    settings, request = imports.settings, begun.request
    arguments = [request.source, *settings.fetch_from]
    with begun.in_thread(), begun.ending():
        with confined_program(FETCHER, arguments, cpu_s=CPU_S, network=True) as program:
            begun.stop = program.kill
            file = FetchedFile(program, request.what, settings.fetch_timeout_s)
            begun.expect(file.size_bytes(settings.max_virtual_gib * GIB))
            begun.take(file, program.kill)
