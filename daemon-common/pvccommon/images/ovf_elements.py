"""Reading single elements of an OVF document: names, texts and numbers.

Elements and attributes are found by their local names: the fields of hardware items come from up to three CIM
namespaces, which writers of OVF mix, and some leave prefixes of attributes out.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pvccommon.images.allocation_units import size_in_bytes
from pvccommon.images.file_name import shown
from pvccommon.images.findings import Findings
from pvccommon.images.limits import Limits

if TYPE_CHECKING:
    from lxml import etree

    Element = etree._Element

MAX_NUMBER_CHARS = 20


def local_name(element: "Element") -> str:
    return str(element.tag).rpartition("}")[2]


def namespace(element: "Element") -> str:
    return str(element.tag).rpartition("}")[0].removeprefix("{")


def children(element: "Element", name: str) -> Iterator["Element"]:
    return (child for child in element if local_name(child) == name)


def attribute(element: "Element", name: str) -> str:
    """Its value, empty when there is none."""
    for key, value in element.attrib.items():
        if str(key).rpartition("}")[2] == name:
            return str(value).strip()
    return ""


def text_of(element: "Element | None") -> str:
    return (element.text or "").strip() if element is not None else ""


class Reader:
    """Reads values, and notes what is wrong with them."""

    def __init__(self, findings: Findings, limits: Limits) -> None:
        self.findings = findings
        self.limits = limits

    def name(self, path: str, text: str, *, required: bool = True) -> str:
        """A short visible text; the empty text when it is not one."""
        if not text:
            if required:
                self.findings.wrong(path, "is missing")
            return ""
        if len(text) > self.limits.name_chars:
            self.findings.wrong(path, f"is longer than {self.limits.name_chars} characters")
            return ""
        if not text.isprintable():
            self.findings.wrong(path, f"{shown(text)} has a control or invisible character")
            return ""
        return text

    def remark(self, text: str) -> str:
        """A text that is only shown: cut and cleaned instead of refused."""
        cut = " ".join(text[:1000].split())[: self.limits.name_chars]
        return "".join(letter if letter.isprintable() else "?" for letter in cut)

    def number(self, path: str, text: str) -> int | None:
        """A whole number from 0, or None, with a problem noted."""
        if not text:
            self.findings.wrong(path, "is missing")
        elif len(text) > MAX_NUMBER_CHARS or not (text.isascii() and text.isdigit()):
            self.findings.wrong(path, f"{shown(text)} is not a whole number")
        else:
            return int(text)
        return None

    def size(self, path: str, text: str, unit: str) -> int | None:
        """A quantity with a unit, in bytes."""
        quantity = self.number(path, text)
        if quantity is None:
            return None
        try:
            return size_in_bytes(quantity, unit)
        except ValueError as exc:
            self.findings.wrong(path, str(exc))
            return None

    def field(self, path: str, element: "Element", name: str) -> str:
        """The text of a child that may stand once."""
        found = list(children(element, name))
        if len(found) > 1:
            self.findings.wrong(f"{path}.{name}", "is given more than once")
        return text_of(found[0]) if found else ""
