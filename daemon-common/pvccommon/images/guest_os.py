"""Which family of operating systems a guest is of: it decides which drivers it can be expected to have."""

import re
from typing import Final

from pvccommon.images.ovf_model import Family, GuestOs

# CIM_OperatingSystem.OSType, https://schemas.dmtf.org/wbem/cim-html/2.55.0/CIM_OperatingSystem.html
_FAMILY_OF_CIM_TYPE: Final[dict[int, Family]] = {
    **dict.fromkeys((36, *range(79, 81), *range(82, 86), *range(86, 102), *range(106, 110)), "linux"),
    **dict.fromkeys((*range(15, 20), 58, 63, 67, *range(69, 78), 103, 105, *range(111, 122)), "windows"),
    **dict.fromkeys((41, 42, 43, 65, 78), "bsd"),
}
_FAMILY_OF_WORDS: Final[tuple[tuple[re.Pattern[str], Family], ...]] = (
    (re.compile(r"windows|^win(?:[0-9]|net|xp|vista)|microsoft", re.IGNORECASE), "windows"),
    (re.compile(r"bsd", re.IGNORECASE), "bsd"),
    (
        re.compile(
            r"linux|ubuntu|debian|centos|fedora|rhel|red ?hat|rocky|alma|suse|sles|photon|coreos|flatcar",
            re.IGNORECASE,
        ),
        "linux",
    ),
)


def guest_os(cim_type: int, *texts: str) -> GuestOs:
    """From the number, else from what vendors write (`debian11_64Guest`, "Ubuntu Linux (64-bit)")."""
    description = next((text for text in texts if text), "")
    return GuestOs(cim_type, description, _FAMILY_OF_CIM_TYPE.get(cim_type) or _family_by_words(texts))


def _family_by_words(texts: tuple[str, ...]) -> Family:
    for text in texts:
        for pattern, family in _FAMILY_OF_WORDS:
            if pattern.search(text):
                return family
    return "other"
