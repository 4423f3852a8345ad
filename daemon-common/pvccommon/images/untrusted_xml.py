"""XML from strangers.

Two parsers read it. Expat goes first and builds nothing: it refuses document types and entities, and counts,
in time that grows with the document's length only. libxml2, which compares each attribute of an element with
each other, and is asked to build a tree, then sees only documents of bounded shape.
"""

from pyexpat import ExpatError, ParserCreate
from typing import TYPE_CHECKING

from lxml import etree

from pvccommon.errors import WrongInput
from pvccommon.images.limits import Limits

if TYPE_CHECKING:
    Element = etree._Element


def parse_untrusted(what: str, document: bytes, limits: Limits) -> "Element":
    """The root of a document without comments. Raises WrongInput: too large, a DOCTYPE, not well-formed."""
    if len(document) > limits.ovf_bytes:
        raise WrongInput(what, f"the document is larger than {limits.ovf_bytes} bytes")
    _Guard(what, limits).check(document)
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(document, parser)
    except (etree.XMLSyntaxError, ValueError, LookupError) as exc:
        raise WrongInput(what, f"the document is not well-formed XML: {_first_line(exc)}") from exc
    if root is None:
        raise WrongInput(what, "the document is not well-formed XML: it has no root element")
    return root


class _Guard:
    """Counts what expat reports, and stops it at the first excess."""

    def __init__(self, what: str, limits: Limits) -> None:
        self.what = what
        self.limits = limits
        self.depth = 0
        self.elements = 0
        self.text_chars = 0

    def check(self, document: bytes) -> None:
        parser = ParserCreate()
        parser.buffer_text = True
        parser.ordered_attributes = True
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(document, True)
        except (ExpatError, ValueError, LookupError) as exc:
            raise WrongInput(self.what, f"the document is not well-formed XML: {_first_line(exc)}") from exc

    def _refuse(self, why: str, hint: str = "") -> None:
        raise WrongInput(self.what, why, hint)

    def _doctype(self, *_: object) -> None:
        self._refuse("the document has a DOCTYPE", "leave the document type and its entities out")

    def _start(self, tag: str, attributes: list[str]) -> None:
        limits = self.limits
        self.depth += 1
        self.elements += 1
        self.text_chars = 0
        if self.depth > limits.xml_depth:
            self._refuse(f"the document's elements are nested deeper than {limits.xml_depth}")
        if self.elements > limits.xml_elements:
            self._refuse(f"the document has more than {limits.xml_elements} elements")
        if len(attributes) > 2 * limits.xml_attributes:
            self._refuse(f"an element of the document has more than {limits.xml_attributes} attributes")
        if max(map(len, (tag, *attributes[::2]))) > limits.name_chars:
            self._refuse(f"the document has a name longer than {limits.name_chars} characters")
        if any(len(value) > limits.xml_text_chars for value in attributes):
            self._too_long()

    def _end(self, _tag: str) -> None:
        self.depth -= 1
        self.text_chars = 0

    def _text(self, text: str) -> None:
        self.text_chars += len(text)
        if self.text_chars > self.limits.xml_text_chars:
            self._too_long()

    def _too_long(self) -> None:
        self._refuse(f"the document has a text longer than {self.limits.xml_text_chars} characters")


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
