"""Units of sizes as OVF documents spell them.

Two grammars meet there. DSP0004 2.8 annex C ("programmatic units", OVF 1.1 and later): products and quotients
of numbers, powers and base units, such as `byte * 2^20` or `megabyte`; prefixes are decimal (mega = 10^6) or
binary (mebi = 2^20), and case counts. Before that, CIM's "Units" (OVF 1.0, VirtualBox, old VMware): plural
words and abbreviations such as `MegaBytes` and `MB`, always powers of two.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

MAX_CHARS = 128
MAX_EXPONENT = 128
MAX_DIGITS = 24
# A size in bytes beyond this is a mistake, not a size.
MAX_BYTES = 2**63 - 1

OLD_UNITS: Final = {
    "Bytes": 1, "B": 1,
    "KiloBytes": 2**10, "Kilobytes": 2**10, "kilobytes": 2**10, "KB": 2**10, "KiB": 2**10,
    "MegaBytes": 2**20, "Megabytes": 2**20, "megabytes": 2**20, "MB": 2**20, "MiB": 2**20,
    "GigaBytes": 2**30, "Gigabytes": 2**30, "gigabytes": 2**30, "GB": 2**30, "GiB": 2**30,
    "TeraBytes": 2**40, "Terabytes": 2**40, "terabytes": 2**40, "TB": 2**40, "TiB": 2**40,
}  # fmt: skip

PREFIXES: Final = {
    "": Fraction(1),
    "deca": Fraction(10), "hecto": Fraction(10**2), "kilo": Fraction(10**3), "mega": Fraction(10**6),
    "giga": Fraction(10**9), "tera": Fraction(10**12), "peta": Fraction(10**15), "exa": Fraction(10**18),
    "deci": Fraction(1, 10), "centi": Fraction(1, 10**2), "milli": Fraction(1, 10**3),
    "kibi": Fraction(2**10), "mebi": Fraction(2**20), "gibi": Fraction(2**30), "tebi": Fraction(2**40),
    "pebi": Fraction(2**50), "exbi": Fraction(2**60),
}  # fmt: skip
BASE_UNITS: Final = {"byte": Fraction(1), "bit": Fraction(1, 8)}
WORDS: Final = {
    prefix + unit: factor * size for prefix, factor in PREFIXES.items() for unit, size in BASE_UNITS.items()
}

_ELEMENT = re.compile(
    r"(?P<base>[0-9]+(?:\.[0-9]+)?|[a-z]+)(?:[ ]*\^[ ]*(?P<exponent>[+-]?[0-9]+))?", re.ASCII
)


def bytes_per_unit(text: str) -> Fraction:
    """How many bytes one unit is; the empty text means bytes. Raises ValueError with the reason."""
    text = " ".join(text.split())
    if not text:
        return Fraction(1)
    if len(text) > MAX_CHARS:
        raise ValueError(f"the unit is longer than {MAX_CHARS} characters")
    if text in OLD_UNITS:
        return Fraction(OLD_UNITS[text])
    sign, rest = (-1, text[1:].lstrip(" ")) if text[0] == "-" else (1, text.removeprefix("+").lstrip(" "))
    return sign * _product(rest, text)


def size_in_bytes(quantity: int, unit: str) -> int:
    """A quantity of a unit in whole bytes. Raises ValueError: bad unit, not whole, negative, too large."""
    size = quantity * bytes_per_unit(unit)
    if size.denominator != 1:
        raise ValueError(f"{quantity} of {unit!r} is not a whole number of bytes")
    if size < 0:
        raise ValueError("a size cannot be negative")
    if size > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    return int(size)


def _product(text: str, whole: str) -> Fraction:
    result, units = Fraction(1), 0
    for operator, element in _elements(text, whole):
        factor, is_unit = _value(element, whole)
        units += is_unit
        if operator == "/":
            if factor == 0:
                raise ValueError(f"the unit {whole!r} divides by zero")
            factor = 1 / factor
        result *= factor
    if units != 1:
        raise ValueError(f"the unit {whole!r} must name bytes (or bits) exactly once")
    return result


def _elements(text: str, whole: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Operator and factor, in order; the first operator is `*`."""
    position, operator = 0, "*"
    while True:
        match = _ELEMENT.match(text, position)
        if match is None:
            raise ValueError(f"{whole!r} is not a unit of size, such as 'byte * 2^20'")
        yield operator, match
        rest = text[match.end() :].lstrip(" ")
        if not rest:
            return
        operator, text, position = rest[0], rest[1:].lstrip(" "), 0
        if operator not in "*/":
            raise ValueError(f"{whole!r} is not a unit of size, such as 'byte * 2^20'")


def _value(element: re.Match[str], whole: str) -> tuple[Fraction, bool]:
    """The value of one factor, and whether it names a unit."""
    base, exponent = element["base"], element["exponent"]
    is_unit = base[0].isalpha()
    if is_unit:
        if base not in WORDS:
            raise ValueError(f"{base!r} is not a unit of size, such as 'byte * 2^20'")
        if exponent is not None and int(exponent[:MAX_DIGITS]) != 1:
            raise ValueError(f"the unit {whole!r} is a power of a size")
        return WORDS[base], True
    if len(base) > MAX_DIGITS:
        raise ValueError(f"the unit {whole[:40]!r} has a number of more than {MAX_DIGITS} digits")
    return _power(Fraction(base), exponent or "1", whole), False


def _power(base: Fraction, exponent: str, whole: str) -> Fraction:
    # The length first: converting a long text is slow, raising to a large power slower.
    if len(exponent) > 4 or abs(int(exponent)) > MAX_EXPONENT:
        raise ValueError(f"the unit {whole!r} has an exponent beyond {MAX_EXPONENT}")
    power = int(exponent)
    if base == 0 and power < 0:
        raise ValueError(f"the unit {whole!r} divides by zero")
    return base**power
