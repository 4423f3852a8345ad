"""Every builder that comes with the package has a page, which is linked and explains all its arguments."""

import re
from pathlib import Path

import pytest

from pvccommon.declarations import read_declaration

TOP = Path(__file__).resolve().parents[3]
BUILDERS = sorted((TOP / "provisioner-scripts" / "builders").glob("*.py"))
PAGES = TOP / "docs" / "builders"


def test_there_are_builders() -> None:
    assert {"noop", "debootstrap", "rinse", "freebsd"} <= {path.stem for path in BUILDERS}


@pytest.mark.parametrize("script", BUILDERS, ids=lambda path: path.stem)
def test_page_explains_every_argument(script: Path) -> None:
    page = (PAGES / f"{script.stem}.md").read_text()
    declared = [argument.name for argument in read_declaration(script.read_text()).arguments]
    assert re.findall(r"^\| `(\w+)` \|", page.split("\n## ")[0], re.MULTILINE) == declared
    assert f"(builders/{script.stem}.md)" in (TOP / "docs" / "writing-a-builder.md").read_text()


def test_no_page_is_left_of_a_builder_that_is_gone() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {script.stem for script in BUILDERS}
