"""Two thousand OVF documents that nobody would write, sent to the API: a plan or a reason, never a 500."""

import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "unit" / "images"))

from ovf_mutations import TEMPLATES, mutated

PLAN = "/provisioner/image/plan"
SECONDS_FOR_ONE = 3.0  # takes milliseconds; the machine may be busy
WAYS = ("form", "json", "body")
SYSTEMS = (None, None, "web", "a", "\u202e", "x" * 255)


def send(api: Any, document: bytes, way: str, system: str | None) -> Any:
    query = {"system": system} if system is not None else {}
    if way == "json":
        return api.post(PLAN, query, json={"data": document.decode("utf-8", "surrogateescape")})
    if way == "form":
        return api.post(PLAN, query, form={"data": document})
    return api.post(PLAN, query, data=b"data=" + document, content_type="application/x-www-form-urlencoded")


def test_no_document_gives_a_500(api: Any) -> None:
    outcomes: Counter[tuple[str, int]] = Counter()

    @seed(21)
    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.integers(0, len(TEMPLATES) - 1),
        st.integers(0, 6),
        st.sampled_from((0, 0, 0, 0, 1, 3)),
        st.integers(0, 2**64 - 1),
        st.sampled_from(WAYS),
        st.sampled_from(SYSTEMS),
    )
    def plan_or_reason(
        template: int, changes: int, damage: int, number: int, way: str, system: str | None
    ) -> None:
        document = mutated(template, changes, damage, random.Random(number))
        started = time.monotonic()
        answer = send(api, document, way, system)
        assert answer.status_code in (200, 400), (answer.status_code, answer.text, document)
        expected = {"hardware", "systems"} if answer.status_code == 200 else {"message", "kind"}
        assert expected <= set(answer.json)
        assert time.monotonic() - started < SECONDS_FOR_ONE
        outcomes[way, answer.status_code] += 1

    plan_or_reason()
    # What only makes rubbish, or only good documents, would test nothing.
    assert outcomes.total() >= 2000
    for way in ("form", "json"):
        assert min(outcomes[way, 200], outcomes[way, 400]) > 100, outcomes


def test_text_that_is_no_text_is_refused(api: Any, expect: Any) -> None:
    for text in ("\ud800", "\udcff<x/>", "<a>\x00</a>", "\uffff"):
        expect(api.post(PLAN, json={"data": text}), 400)
    for body in (b"data=%ff%fe", b"data=%ed%a0%80", b"data=%00", b"data=" + bytes(range(128, 256))):
        expect(api.post(PLAN, data=body, content_type="application/x-www-form-urlencoded"), 400)
