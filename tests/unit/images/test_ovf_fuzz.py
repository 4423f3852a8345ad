"""Two thousand documents that nobody would write: each is read, or refused with a reason, soon."""

import random
import time

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from ovf_mutations import TEMPLATES, mutated

from pvccommon.errors import WrongInput
from pvccommon.images.hardware import offer_hardware
from pvccommon.images.ovf import parse_ovf

SECONDS_FOR_ONE = 2.0  # takes milliseconds; the machine may be busy

outcomes = {"read": 0, "refused": 0}


@seed(20)
@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, len(TEMPLATES) - 1),
    st.integers(0, 6),
    st.sampled_from((0, 0, 0, 0, 1, 3)),
    st.integers(0, 2**64 - 1),
)
def read_or_refuse(template: int, changes: int, damage: int, number: int) -> None:
    document = mutated(template, changes, damage, random.Random(number))
    started = time.monotonic()
    try:
        found = parse_ovf(document)
    except WrongInput as exc:
        assert exc.why
        outcomes["refused"] += 1
    else:
        for entry in found.systems:
            assert offer_hardware(entry).vcpus > 0
        outcomes["read"] += 1
    assert time.monotonic() - started < SECONDS_FOR_ONE


def test_documents_are_read_or_refused_and_never_break_the_reader() -> None:
    read_or_refuse()
    # A generator that only makes rubbish, or only good documents, would test nothing.
    assert min(outcomes.values()) > 200, outcomes


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(document: bytes) -> None:
    try:
        parse_ovf(document)
    except WrongInput as exc:
        assert exc.why
    else:
        raise AssertionError("random bytes were read")
