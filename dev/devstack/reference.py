"""Reference pages made from the code: the configuration keys."""

import sys
from collections.abc import Iterator, Sequence

from devstack.state import CHECKOUT
from pvccommon.config import describe

CONFIGURATION = CHECKOUT / "docs/configuration.md"
HEAD = """\
# Configuration

One YAML file for both daemons, `/etc/pvc/pvc.conf` unless `--config` or `PVC_CONFIG` names another. Every key
has a default; an unknown key is an error. This page is written by `make docs` from `pvccommon/config.py`.

| key | type | default | meaning |
|---|---|---|---|
"""


def configuration_page() -> str:
    return HEAD + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for key, kind, default, meaning in describe():
        cells = (f"`{key}`", kind, f"`{default}`" if default else "", meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    page = configuration_page()
    if "--check" in words:
        current = CONFIGURATION.exists() and CONFIGURATION.read_text() == page
        print("docs/configuration.md " + ("is current" if current else "is out of date; run: make docs"))
        return 0 if current else 1
    CONFIGURATION.write_text(page)
    print(f"wrote {CONFIGURATION.relative_to(CHECKOUT)}")
    return 0
