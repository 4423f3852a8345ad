"""Imports of a node that dies or freezes: the image can be deleted, nothing is left or comes back."""

import random
import warnings
from collections.abc import Iterator

import pytest
from image_uploads import CHUNK_BYTES, IMAGES, MIB, Tus, names, tools
from pair import Pair, wait_for

from pvccommon.errors import WrongState
from pvccommon.models import Image
from pvcnoded.lease import Owner

with warnings.catch_warnings():  # Debian 12's kombu uses what later Pythons will not have
    warnings.simplefilter("ignore", DeprecationWarning)
    from pvccommon.queue import call_node, create_celery

pytestmark = pytest.mark.system

DATA = random.Random(9).randbytes(12 * MIB)


@pytest.fixture(autouse=True)
def no_images(pair: Pair) -> Iterator[None]:
    yield
    for node in (1, 2):
        pair.stack.thaw_node(node)
        pair.stack.start_node(node)
    pair.wait_until_alive(1, 2)
    left = names(pair)
    for name in left:
        pair.request("DELETE", f"{IMAGES}/{name}")
    assert left == []


def half_uploaded(pair: Pair, pool: str, form: str = "raw", **more: str) -> Tus:
    """An upload under way on node 1, some of which is in the pool already."""
    objects = pair.objects()
    upload = Tus(pair, "golden", len(DATA), "disk", form, pool=pool, **more)
    for offset in (0, CHUNK_BYTES):
        assert upload.append(offset, DATA[offset : offset + CHUNK_BYTES]).status_code == 204
    [image] = pair.get(f"{IMAGES}/golden")
    assert image["state"] == "importing"
    if pool == "vms":
        wait_for(lambda: pair.objects() != objects, "it has begun to write")
    return upload


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_killed_nodes_import_into_a_shared_pool_is_removed_by_another(pair: Pair, form: str) -> None:
    objects = pair.objects()
    half_uploaded(pair, "vms", form)
    pair.stack.kill_node(1)
    pair.wait_until_dead(1)
    assert pair.objects() != objects
    pair.change("DELETE", f"{IMAGES}/golden")
    assert names(pair) == []
    assert pair.objects() == objects


def test_frozen_nodes_import_is_removed_and_does_not_come_back(pair: Pair) -> None:
    objects = pair.objects()
    half_uploaded(pair, "vms")
    pair.stack.freeze_node(1)
    pair.wait_until_dead(1)
    pair.change("DELETE", f"{IMAGES}/golden")
    assert names(pair) == [] and pair.objects() == objects

    pair.stack.thaw_node(1)
    pair.wait_until_alive(1, 2)
    wait_for(lambda: tools(pair) == [], "its decoder is ended")
    wait_for(lambda: pair.request("GET", "/orphans").status_code == 200, "it has noticed that it was fenced")
    upload = Tus(pair, "golden", len(DATA), "disk", "raw")  # the same process, with a connection of its own
    assert upload.append(0, DATA[:CHUNK_BYTES]).status_code == 204
    pair.get("/orphans")  # what it half makes is nobody's leftover
    for offset in (CHUNK_BYTES, 2 * CHUNK_BYTES):
        assert upload.append(offset, DATA[offset : offset + CHUNK_BYTES]).status_code == 204
    wait_for(lambda: pair.get(f"{IMAGES}/golden")[0]["state"] == "ready", "it is imported")
    pair.change("DELETE", f"{IMAGES}/golden")
    assert pair.objects() == objects, "nothing it had on its way has arrived"


def test_dead_nodes_import_into_its_own_pool_waits_for_it_and_says_so(pair: Pair) -> None:
    half_uploaded(pair, "local", node="hv1")
    pair.stack.kill_node(1)
    pair.wait_until_dead(1)
    answer = pair.request("DELETE", f"{IMAGES}/golden")
    assert answer.status_code == 400
    assert "only node hv1 reaches pool local" in answer.json()["message"]
    assert "when hv1 runs again, it removes it by itself" in answer.json()["hint"]
    pair.change("PUT", f"{IMAGES}/golden", new_name="lost")
    pair.stack.start_node(1)
    wait_for(lambda: names(pair) == [], "the node removes it")


@pytest.mark.filterwarnings("ignore:SelectableGroups dict interface:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_living_nodes_import_is_not_taken_over(pair: Pair) -> None:
    """Even when the command reaches the wrong node."""
    upload = half_uploaded(pair, "vms")
    with pair.database.session() as session:
        image = session.query(Image).one()
        owner = Owner.parse(image.owner)
    other = {"hv1": "hv2", "hv2": "hv1"}[owner.node]
    arguments = {"pool": "vms", "image_id": image.id, "with_parts": False}
    with pytest.raises(WrongState, match=f"node {owner.node} imports it, and runs"):
        call_node(create_celery(pair.config.queue), other, "image.remove", arguments, 30)
    offset = 2 * CHUNK_BYTES
    assert upload.append(offset, DATA[offset:]).status_code == 204
    wait_for(lambda: pair.get(f"{IMAGES}/golden")[0]["state"] == "ready", "it is imported")
    pair.change("DELETE", f"{IMAGES}/golden")
