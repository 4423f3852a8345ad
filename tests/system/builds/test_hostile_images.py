"""Hostile images and archives through the whole product: refused, each with its reason, and nothing left.

The readers have tests of their own with many more (tests/unit/images); here a few of each sort go through
API, node, decoder and pool, in every way that images come.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from cluster import NOOP, SETTINGS, Cluster
from hostile_images import CHUNKS, NOISE, OVA, REQUEST, TABLE, WAYS, Hostile, qcow2
from hostile_server import HostileServer, Reply, hostile_server
from image_uploads import CHUNK_BYTES, IMAGES, Tus, names, post, post_ova, tools, until

from devstack import temporary_stack
from devstack.configuration import merged
from pvccommon.models import ImageVolume

NAME = "hostile"
DOCUMENT = Path(__file__).parents[3] / "docs" / "images.md"
# One address of the node's own is allowed, so that a server here is fetched from; the others are not.
IMAGES_SETTINGS = {"images": {"fetch_from": ["127.0.0.1/32"], "fetch_timeout_s": 6}}
SPARE_SOCKETS = 4  # of the pools of connections with database and queue


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A stack that may fetch from this host."""
    with (
        temporary_stack(settings=merged(SETTINGS, IMAGES_SETTINGS)) as stack,
        closing(Cluster(stack)) as found,
    ):
        found.ensure("/provisioner/script", "ova", data=NOOP.with_name("ova.py").read_text())
        for way in (CHUNKS, REQUEST):  # what is opened once and stays
            answer = send(found, Hostile("good", way, "raw", lambda: NOISE, ""))
            assert answer.status_code in (200, 204), answer.text
            found.change("DELETE", f"{IMAGES}/{NAME}")
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as found:
        yield found


@pytest.fixture
def nothing_left(cluster: Cluster) -> Iterator[None]:
    """Afterwards there are no more rows, volumes, processes, mounts, devices or open files than before."""
    before, files = cluster.footprint(), open_files(cluster)
    yield
    rows = names(cluster)
    for name in rows:
        cluster.request("DELETE", f"{IMAGES}/{name}")  # so that the next test has its chance
    assert rows == [] and volume_rows(cluster) == []
    until(lambda: tools(cluster) == [], "processes are left")
    for noun in ("profile", "template/system"):
        assert cluster.request("GET", f"/provisioner/{noun}").status_code == 404, noun
    assert cluster.footprint().since(before) == {}
    until(lambda: not open_files(cluster) - files, f"open files are left: {open_files(cluster) - files}")


def volume_rows(cluster: Cluster) -> list[ImageVolume]:
    with cluster.database.session() as session:
        return list(session.query(ImageVolume).all())


def open_files(cluster: Cluster, *, sockets: bool = False) -> Counter[str]:
    """What the node's process has open but for sockets, or these: pipes count, their numbers do not."""
    directory = Path(f"/proc/{cluster.worker_pid('commands')}/fd")
    found: Counter[str] = Counter()
    for entry in directory.iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        kind = target.partition(":[")[0]
        if (kind == "socket") == sockets:
            found[kind] += 1
    return found


# ---- the ways


def send(cluster: Cluster, case: Hostile) -> requests.Response:
    """The answer that ends the sending."""
    data = case.data()
    size_bytes = case.size_bytes or len(data)
    if case.way == CHUNKS:
        upload = Tus(cluster, NAME, size_bytes, case.kind, case.form, **case.more)
        for start in range(0, len(data), CHUNK_BYTES):
            answer = upload.append(start, data[start : start + CHUNK_BYTES])
            if answer.status_code != 204:
                break
        return answer
    if case.way == REQUEST:
        return post(cluster, NAME, data, size_bytes, kind=case.kind, format=case.form, **case.more)
    assert case.way == OVA
    return post_ova(cluster, NAME, data)


def fetch(cluster: Cluster, server: HostileServer, case: Hostile) -> requests.Response:
    """The answer that tells what became of it."""
    data = case.data()
    server.reply = lambda url: case.reply(url, data) if case.reply else Reply.of(data)
    more = {"sha256": hashlib.sha256(data).hexdigest(), **case.more}
    path = f"{IMAGES}/{NAME}/import"
    query = {"kind": case.kind, "format": case.form, "pool": "vms", "url": server.url, **more}
    answer = cluster.request("POST", path, **query)
    assert answer.status_code == 202, answer.text
    until(lambda: cluster.get(f"{IMAGES}/{NAME}")[0]["state"] != "importing", "it never ends")
    return cluster.request("GET", f"{IMAGES}/{NAME}")


def refusal(cluster: Cluster, server: HostileServer, case: Hostile) -> str:
    """What was said; a row that is left is deleted as an operator would."""
    if case.way in (CHUNKS, REQUEST, OVA):
        answer = send(cluster, case)
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        said = str(answer.json()["message"])
    else:
        [image] = fetch(cluster, server, case).json()
        assert image["state"] == "failed" and image["volumes"] == [], image
        said = f"{image['error']['what']}: {image['error']['why']}"
    if names(cluster) == [NAME]:
        cluster.change("DELETE", f"{IMAGES}/{NAME}")
    return said


# ---- the tests

said: dict[str, str] = {}


@pytest.mark.system
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("case", TABLE, ids=[f"{case.way}: {case}" for case in TABLE])
def test_it_is_refused_with_its_reason(cluster: Cluster, server: HostileServer, case: Hostile) -> None:
    answer = refusal(cluster, server, case)
    assert case.reason in answer
    said[line(case)] = answer


@pytest.mark.system
@pytest.mark.usefixtures("nothing_left")
def test_no_connection_stays_open_either(cluster: Cluster) -> None:
    before = open_files(cluster, sockets=True)
    for _ in range(3):
        for way in WAYS[:3]:
            send(cluster, next(case for case in TABLE if case.way == way))
    until(lambda: open_files(cluster, sockets=True)["socket"] <= before["socket"] + SPARE_SOCKETS, "sockets")


@pytest.mark.system
@pytest.mark.usefixtures("nothing_left")
def test_bytes_of_another_format_are_taken_as_bytes_if_that_is_asked_for(cluster: Cluster) -> None:
    """No one looks into it: a guest sees the very bytes, and nothing that they name."""
    data = qcow2(backing=(112, 11), extensions=b"/etc/shadow")
    answer = post(cluster, NAME, data, len(data), format="raw")
    assert answer.status_code == 200, answer.text
    [image] = cluster.get(f"{IMAGES}/{NAME}")
    assert image["state"] == "ready" and any("begins like qcow2" in text for text in image["warnings"]), image
    [volume] = image["volumes"]
    assert b"".join(cluster.pool.export_stream(volume["volume_name"])) == data
    cluster.change("DELETE", f"{IMAGES}/{NAME}")


def test_every_reason_is_the_cases_own() -> None:
    assert len(TABLE) >= 40
    assert {case.way for case in TABLE} == set(WAYS)
    twice = Counter((case.way, case.form, case.reason) for case in TABLE) - Counter(
        {(case.way, case.form, case.reason) for case in TABLE}
    )
    assert not twice


def line(case: Hostile) -> str:
    return f"{case.name:36} {case.form:6} {case.way:12}"


def rows(cases: Any) -> list[str]:
    lines = ["| what | format | way | the reason has these words |", "| --- | --- | --- | --- |"]
    return lines + [f"| {case.name} | {case.form} | {case.way} | {case.reason} |" for case in cases]


def test_the_documentation_has_the_same_table() -> None:
    assert "\n".join(rows(TABLE)) in DOCUMENT.read_text()


@pytest.mark.system
def test_the_table_is_shown() -> None:
    """For those who read logs; it comes last."""
    for case, answer in said.items():
        print(f"{case} {answer[:160]}")
    print(f"{len(said)} of {len(TABLE)} refused, nothing left")
    assert said
