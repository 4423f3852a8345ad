"""The text inside a VMDK that says what its data consists of ("Virtual Disk Format 5.0", VMware).

    CID=fffffffe
    parentCID=ffffffff
    createType="streamOptimized"
    RW 4192256 SPARSE "disk.vmdk"
    ddb.adapterType = "lsilogic"

Extents name files. Only one extent will do, and only one that is this file itself.
"""

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from pvccommon.errors import WrongInput
from pvccommon.images.file_name import name_problem, shown
from pvccommon.images.vmdk_header import CONVERT_HINT

NO_PARENT: Final = "ffffffff"
CREATE_TYPES: Final = ("monolithicSparse", "streamOptimized")
MAX_LINES: Final = 2000

_SETTING = re.compile(r"(?P<key>[A-Za-z][A-Za-z0-9_.]*)\s*=\s*\"?(?P<value>[^\"]*)\"?", re.ASCII)
_EXTENT = re.compile(
    r"(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>[0-9]{1,19})\s+(?P<type>[A-Z0-9]+)"
    r"(?:\s+\"(?P<name>[^\"]*)\"(?:\s+(?P<offset>[0-9]{1,19}))?)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Descriptor:
    """A descriptor that describes just the file it is in."""

    create_type: str
    sectors: int
    adapter: str


def parse_descriptor(what: str, data: bytes) -> Descriptor:
    """Read an embedded descriptor. Raises WrongInput: a parent, other files, several extents, encryption."""
    text = data.partition(b"\0")[0].decode(errors="replace")
    lines = [line.strip() for line in text.split("\n")]
    if len(lines) > MAX_LINES:
        _refuse(what, f"has more than {MAX_LINES} lines")
    settings: dict[str, str] = {}
    extents: list[re.Match[str]] = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        extent, setting = _EXTENT.fullmatch(line), _SETTING.fullmatch(line)
        if extent:
            extents.append(extent)
        elif setting:
            _add(what, settings, setting["key"].lower(), setting["value"])
        else:
            _refuse(what, f"has a line that is not known: {shown(line)}")
    _check_settings(what, settings)
    return Descriptor(settings["createtype"], _sectors(what, extents), settings.get("ddb.adaptertype", ""))


def _refuse(what: str, why: str, hint: str = "") -> NoReturn:
    raise WrongInput(what, f"the VMDK descriptor {why}", hint)


def _add(what: str, settings: dict[str, str], key: str, value: str) -> None:
    if settings.setdefault(key, value) != value:
        _refuse(what, f"gives {shown(key)} twice")


def _check_settings(what: str, settings: dict[str, str]) -> None:
    if any(key.startswith("encryption") for key in settings):
        _refuse(what, "says that the image is encrypted", "decrypt it first")
    parent = settings.get("parentcid", NO_PARENT)
    if parent.lower() != NO_PARENT or "parentfilenamehint" in settings:
        name = settings.get("parentfilenamehint", parent)
        _refuse(what, f"names a parent image, {shown(name)}", "flatten the image first")
    create_type = settings.get("createtype", "")
    if create_type not in CREATE_TYPES:
        _refuse(what, f"is of type {shown(create_type)}, not one of {', '.join(CREATE_TYPES)}", CONVERT_HINT)


def _sectors(what: str, extents: list[re.Match[str]]) -> int:
    if len(extents) != 1:
        _refuse(what, f"has {len(extents)} extents instead of one", "convert the image to a single file")
    (extent,) = extents
    name = extent["name"]
    if extent["type"] != "SPARSE":
        _refuse(what, f"has an extent of type {extent['type']}, which points to another file")
    problem = name_problem(name or "")
    if problem:
        _refuse(what, f"has an extent outside the image: {shown(name or '')} {problem}")
    if extent["access"] == "NOACCESS" or extent["offset"] not in (None, "0"):
        _refuse(what, "has an extent that cannot be read from its beginning")
    return int(extent["sectors"])
