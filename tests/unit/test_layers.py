"""Who may import whom: the picture in docs/architecture.md, as a test."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "pvc": (ROOT / "client-cli" / "pvc", set()),
    "pvcapid": (ROOT / "api-daemon" / "pvcapid", {"pvccommon"}),
    "pvcnoded": (ROOT / "node-daemon" / "pvcnoded", {"pvccommon"}),
    "pvccommon": (ROOT / "daemon-common" / "pvccommon", set()),
    "vmbuilder": (ROOT / "provisioner-scripts" / "vmbuilder", set()),
}
# Beyond our own packages, the SDK has only what every node has.
SDK_LIBRARIES = {"lxml"}


def imports(path: Path) -> Iterator[str]:
    """Top-level names of all modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    directory, below = PACKAGES[package]
    files = sorted(directory.rglob("*.py"))
    assert files
    forbidden = set(PACKAGES) - {package} - below
    found = {
        f"{path.relative_to(ROOT)}: {name}" for path in files for name in imports(path) if name in forbidden
    }
    assert found == set()


def test_the_sdk_needs_nothing_but_the_standard_library_and_lxml() -> None:
    allowed = {*sys.stdlib_module_names, *SDK_LIBRARIES, "vmbuilder"}
    files = sorted(PACKAGES["vmbuilder"][0].rglob("*.py"))
    assert {name for path in files for name in imports(path)} <= allowed
