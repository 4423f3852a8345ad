"""Units of sizes: the table of spellings, and the laws of the grammar."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvccommon.images.allocation_units import PREFIXES, bytes_per_unit, size_in_bytes


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("", 1),
        ("byte", 1),
        ("byte * 2^20", 2**20),
        ("byte*2^20", 2**20),
        (" byte  *  2 ^ 20 ", 2**20),
        ("byte * 2^30", 2**30),
        ("byte*10^9", 10**9),
        ("2^20 * byte", 2**20),
        ("1024 * 1024 * byte", 2**20),
        ("byte * 2^10 * 2^10", 2**20),
        ("byte * 10^3 / 10", 100),
        ("byte * 2.5", Fraction(5, 2)),
        ("byte * 10^-1", Fraction(1, 10)),
        ("byte^1 * 2^20", 2**20),
        ("+byte", 1),
        ("- byte", -1),
        ("bit * 8", 1),
        ("kilobit", 125),
        ("kilobyte", 10**3),
        ("megabyte", 10**6),
        ("gigabyte", 10**9),
        ("terabyte", 10**12),
        ("kibibyte", 2**10),
        ("mebibyte", 2**20),
        ("gibibyte", 2**30),
        ("MegaBytes", 2**20),
        ("GigaBytes", 2**30),
        ("KiloBytes", 2**10),
        ("Bytes", 1),
        ("MB", 2**20),
        ("GiB", 2**30),
    ],
)
def test_spellings(unit: str, factor: int | Fraction) -> None:
    assert bytes_per_unit(unit) == factor


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("bogus", "is not a unit of size"),
        ("hertz * 10^6", "is not a unit of size"),
        ("BYTE", "is not a unit of size"),
        ("megabyte bit", "is not a unit of size"),
        ("byte *", "is not a unit of size"),
        ("* byte", "is not a unit of size"),
        ("byte % 2", "is not a unit of size"),
        ("byte * ²", "is not a unit of size"),
        ("2^20", "exactly once"),
        ("byte * byte", "exactly once"),
        ("byte^2", "power of a size"),
        ("byte / 0", "divides by zero"),
        ("byte * 0^-1", "divides by zero"),
        ("byte * 2^129", "exponent beyond 128"),
        ("byte * 9^99999999999999999999", "exponent beyond 128"),
        ("byte * " + "9" * 30, "more than 24 digits"),
        ("byte * 1" + " * 1" * 100, "longer than 128"),
    ],
)
def test_no_unit(unit: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("^", r"\^").replace("*", r"\*")):
        bytes_per_unit(unit)


@pytest.mark.parametrize(
    ("quantity", "unit", "reason"),
    [
        (1, "byte / 3", "not a whole number of bytes"),
        (1, "-byte", "cannot be negative"),
        (2**63, "byte", "is larger than"),
        (1, "byte * 10^100", "is larger than"),
    ],
)
def test_no_size(quantity: int, unit: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        size_in_bytes(quantity, unit)


FACTORS = st.one_of(
    st.integers(1, 4096).map(lambda n: (str(n), Fraction(n))),
    st.tuples(st.integers(1, 16), st.integers(-16, 16)).map(
        lambda pair: (f"{pair[0]}^{pair[1]}", Fraction(pair[0]) ** pair[1])
    ),
)
UNITS = st.sampled_from(sorted(PREFIXES)).map(lambda prefix: (prefix + "byte", PREFIXES[prefix]))


@settings(max_examples=300, deadline=None)
@given(
    UNITS, st.lists(st.tuples(st.sampled_from("*/"), FACTORS), max_size=5), st.sampled_from(["", " ", "  "])
)
def test_products_mean_their_product(
    unit: tuple[str, Fraction], factors: list[tuple[str, tuple[str, Fraction]]], blank: str
) -> None:
    text, value = unit
    for operator, (word, factor) in factors:
        text += f"{blank}{operator}{blank}{word}"
        value = value * factor if operator == "*" else value / factor
    assert bytes_per_unit(text) == value


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**20),
    st.integers(0, 2**20),
    st.sampled_from(["byte * 2^20", "MegaBytes", "kilobyte", ""]),
)
def test_sizes_add_up(left: int, right: int, unit: str) -> None:
    assert size_in_bytes(left, unit) + size_in_bytes(right, unit) == size_in_bytes(left + right, unit)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text("byte*/^-+. 0123456789mgaibt", max_size=140)))
def test_any_text_is_a_unit_or_a_reason(text: str) -> None:
    try:
        assert isinstance(bytes_per_unit(text), Fraction)
    except ValueError as exc:
        assert str(exc)
