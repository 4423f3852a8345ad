"""Running programs, as scripts written for PVC 1.0 do it."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence

TIMED_OUT = 128
NOT_STARTED = 255


def run_os_command(
    command: str | Sequence[str],
    background: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> tuple[int, str | None, str | None]:
    """Run a program: (exit code, output, error output). A string is split like a shell does, and no more.

    128 when it took too long, 255 when it could not be started. In the background: (0, None, None) at once.
    """
    argv = shlex.split(command) if isinstance(command, str) else [os.fspath(word) for word in command]
    try:
        if background:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen(argv, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
            return 0, None, None
        done = subprocess.run(
            argv, env=environment, timeout=timeout, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT, "", ""
    except (OSError, IndexError, ValueError) as exc:
        return NOT_STARTED, "", str(exc)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
