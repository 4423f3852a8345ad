"""Results for people and programs. A table is a declaration: columns, name for `raw`, text when empty."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvc.context import Context

if TYPE_CHECKING:
    from rich.text import Text

Row = Mapping[str, Any]
PRETTY, RAW, JSON, JSON_PRETTY = FORMATS = ("pretty", "raw", "json", "json-pretty")
DETAIL_FORMATS = ("pretty", "json", "json-pretty")
INFO_FORMATS = ("pretty", "long", "json", "json-pretty")
STATUS_FORMATS = ("pretty", "short", "json", "json-pretty")

# Escape sequences (CSI, OSC, two-character ones), and the control characters other than tab and line end.
ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]"
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

STATE_STYLES = {
    "start": "green",
    "run": "green",
    "ready": "green",
    "succeeded": "green",
    "running": "cyan",
    "importing": "cyan",
    "queued": "cyan",
    "undoing": "yellow",
    "cancelled": "yellow",
    "stop": "red",
    "fail": "bold red",
    "failed": "bold red",
    "dead": "bold red",
}


@dataclass(frozen=True)
class Column:
    """One column: its heading and where the value comes from (a key, or a function of the row)."""

    title: str
    value: str | Callable[[Row], object]
    number: bool = False
    state: bool = False

    def text(self, row: Row) -> str:
        return cell(row.get(self.value) if isinstance(self.value, str) else self.value(row))


@dataclass(frozen=True)
class Table:
    """A list as the operator sees it. `name` is what the raw format prints, one a line."""

    columns: tuple[Column, ...]
    empty: str
    name: str | Callable[[Row], object] = "name"
    title: str | None = None


def show_list(context: Context, table: Table, rows: Sequence[Row], form: str, data: Any = None) -> None:
    """Print rows in the wanted format; `data` replaces them in the JSON formats (the server's own answer)."""
    if form in (JSON, JSON_PRETTY):
        show_json(context, rows if data is None else data, form)
    elif form == RAW:
        for row in rows:
            context.out(Column("", table.name).text(row))
    elif not rows:
        context.note(table.empty)
    else:
        print_table(context, table, rows)


def show_json(context: Context, data: Any, form: str = JSON) -> None:
    context.out(json.dumps(data, indent=2 if form == JSON_PRETTY else None, ensure_ascii=False))


def print_table(context: Context, table: Table, rows: Sequence[Row], *, stderr: bool = False) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=box.SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold", pad_edge=False
    )
    for column in table.columns:
        drawn.add_column(Text(column.title), justify="right" if column.number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(styled(column.text(row), state=column.state) for column in table.columns))
    context.console(stderr=stderr).print(drawn)


def print_details(context: Context, title: str, details: Iterable[tuple[str, object]]) -> None:
    """Labelled values below each other; those without a value are left out."""
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, show_header=False, title=title, title_justify="left", title_style="bold")
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for label, value in details:
        if value not in (None, "", [], {}):
            drawn.add_row(Text(label), styled(cell(value), state=True))
    context.console().print(drawn)


def styled(text: str, *, state: bool) -> "Text":
    from rich.text import Text

    return Text(text, style=STATE_STYLES.get(text, "") if state else "")


def cell(value: object) -> str:
    """A value as text for a table; never lets control characters of foreign data reach the terminal."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(cell(item) for item in value) or "-"
        case dict():
            return ", ".join(f"{key}={cell(item)}" for key, item in value.items()) or "-"
        case _:
            return printable(str(value))


def printable(text: str) -> str:
    """Text of strangers (build logs, consoles) without escape sequences and control characters."""
    return CONTROLS.sub("", ESCAPES.sub("", text.replace("\r\n", "\n")))


def size_text(size_bytes: object) -> str:
    """Bytes with a binary unit: 5368709120 -> `5 GiB`."""
    if not isinstance(size_bytes, (int, float)):
        return cell(size_bytes)
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def time_text(seconds: object) -> str:
    """Seconds as read on a watch: `0.8 s`, `12 s`, `3:05`, `1:02:03`."""
    if not isinstance(seconds, (int, float)):
        return cell(seconds)
    if 0 < seconds < 0.05:
        return "<0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment_text(moment: object) -> str:
    """An ISO 8601 time in the local time zone, to the second; other text stays as it is."""
    from datetime import datetime

    if not isinstance(moment, str):
        return cell(moment)
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return cell(moment)
