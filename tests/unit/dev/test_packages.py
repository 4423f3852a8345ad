"""debian/control names every library that the code imports, package by package."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.state import CHECKOUT

# Debian package -> our modules in it.
OURS = {
    "pvc-common": ("daemon-common/pvccommon",),
    "pvc-api-daemon": ("api-daemon/pvcapid",),
    "pvc-node-daemon": ("node-daemon/pvcnoded",),
    "pvc-client-cli": ("client-cli/pvc",),
    "pvc-provisioner-scripts": ("provisioner-scripts/vmbuilder", "provisioner-scripts/builders"),
}
OUR_MODULES = {"pvccommon", "pvcapid", "pvcnoded", "pvc", "vmbuilder"}
# Imported name -> Debian package that has it, or that must pull it in.
PROVIDERS = {
    "alembic": "python3-alembic",
    "apispec": "python3-apispec",
    "billiard": "python3-celery",
    "celery": "python3-celery",
    "click": "python3-click",
    "flask": "python3-flask",
    "gunicorn": "gunicorn",
    "jinja2": "python3-flask",
    "kombu": "python3-celery",
    "libvirt": "python3-libvirt",
    "lxml": "python3-lxml",
    "marshmallow": "python3-marshmallow",
    "prometheus_client": "python3-prometheus-client",
    "psycopg2": "python3-psycopg2",
    "rados": "python3-rados",
    "rbd": "python3-rbd",
    "redis": "python3-redis",
    "regex": "python3-regex",
    "requests": "python3-requests",
    "rich": "python3-rich",
    "sqlalchemy": "python3-sqlalchemy",
    "urllib3": "python3-requests",
    "webargs": "python3-webargs",
    "werkzeug": "python3-flask",
    "yaml": "python3-yaml",
}


# Imported only when a pool of their kind is used; the node daemon recommends them.
OPTIONAL = {"rados", "rbd"}


def stanzas(field: str = "Depends") -> dict[str, set[str]]:
    """Package -> names in its Depends, or in another field."""
    result = {}
    for stanza in (CHECKOUT / "debian/control").read_text().split("\n\n"):
        name = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
        depends = re.search(rf"^{field}:((?:.*\n?)(?: .*\n?)*)", stanza, re.MULTILINE)
        if name and depends:
            words = [word.strip() for word in depends[1].split(",")]
            result[name[1]] = {word.split()[0] for word in words if word and not word.startswith("$")}
    return result


def depends(package: str) -> set[str]:
    """What is there when `package` is installed: its Depends, through our own packages."""
    direct = stanzas()[package]
    return direct.union(*(depends(name) for name in direct if name in OURS))


def imported(directory: str) -> Iterator[str]:
    for path in sorted((CHECKOUT / directory).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]


@pytest.mark.parametrize("package", OURS)
def test_imports_are_dependencies(package: str) -> None:
    names = {name for directory in OURS[package] for name in imported(directory)}
    foreign = names - OUR_MODULES - set(sys.stdlib_module_names)
    assert names, "nothing found"
    assert foreign <= PROVIDERS.keys(), "tell PROVIDERS which Debian package has it"
    assert {PROVIDERS[name] for name in foreign - OPTIONAL} <= depends(package)


def test_optional_libraries_are_recommended_to_nodes() -> None:
    assert {PROVIDERS[name] for name in OPTIONAL} <= stanzas("Recommends")["pvc-node-daemon"]


def test_optional_libraries_are_imported_when_they_are_used() -> None:
    """Every daemon starts on a machine that does not have them."""
    directories = (directory for paths in OURS.values() for directory in paths)
    sources = [path for directory in directories for path in (CHECKOUT / directory).rglob("*.py")]
    for path in sources:
        for node in ast.parse(path.read_text()).body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not names & OPTIONAL, path


def test_python_libraries_in_control_are_imported() -> None:
    names = {
        name for directories in OURS.values() for directory in directories for name in imported(directory)
    }
    needed = {PROVIDERS[name] for name in names - OPTIONAL if name in PROVIDERS}
    listed = {name for package in OURS for name in stanzas()[package] if name.startswith("python3-")}
    # SQLAlchemy loads its driver, Celery its transport, by name.
    assert listed - needed == {"python3-psycopg2", "python3-redis"} - needed


def test_every_package_installs_its_modules() -> None:
    for package, directories in OURS.items():
        lines = (CHECKOUT / f"debian/{package}.install").read_text().splitlines()
        installed = {line.split()[0] for line in lines}
        assert set(directories) <= installed


def test_source_list_is_current() -> None:
    assert stanzas().keys() == OURS.keys()
    assert all((CHECKOUT / path).is_dir() for paths in OURS.values() for path in map(Path, paths))
