"""The SDK as a zip: handed to the sandbox by descriptor, so that no path of the host need be searchable."""

import importlib.util
import io
import zipfile
from pathlib import Path

from pvccommon.errors import EnvironmentFault

PACKAGES = ("vmbuilder", "daemon_lib", "pvcworkerd")


def sdk_zip(directory: str | None = None) -> bytes:
    """A zip of the SDK's packages from `directory`, else from where `vmbuilder` is installed.

    Raises EnvironmentFault when it is not found.
    """
    root = Path(directory) if directory else _installed()
    if not (root / PACKAGES[0] / "__init__.py").is_file():
        raise EnvironmentFault(
            "read the SDK", f"{root} holds no package vmbuilder", "install pvc-provisioner-scripts"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                archive.write(path, path.relative_to(root))
    return buffer.getvalue()


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGES[0])
    if found is None or found.origin is None:
        raise EnvironmentFault(
            "read the SDK", "vmbuilder is not installed", "install pvc-provisioner-scripts"
        )
    return Path(found.origin).parents[1]
