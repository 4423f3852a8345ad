"""What a guest writes to its serial console, as text that can be shown: the guest is not to be trusted."""

import re

# ECMA-48: control sequences, then strings (OSC, DCS, …) to their end, then the short escapes.
CURSOR_MOVES = re.compile(r"\x1b\[[0-9;]*[HfEFGde]")
ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
)


def console_lines(data: bytes) -> list[str]:
    """The lines that show something, oldest first: no escape sequences, no control characters.

    Where a program moves the cursor about, or writes over its line (a progress bar), each piece is a line.
    """
    text = CURSOR_MOVES.sub("\n", data.decode(errors="replace"))
    text = ESCAPES.sub("", text)
    lines = (_printable(line) for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line]


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " if c == "\t" else "" for c in line).strip()
