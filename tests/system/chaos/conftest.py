"""Stacks for the representative part of the matrix."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from devstack import Stack

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "builds"))

from cluster import SETTINGS, Cluster

from chaos.points import Brake
from chaos.small_disks import small_stack


@pytest.fixture(scope="module")
def on_directory() -> Iterator[tuple[Cluster, Brake]]:
    with small_stack("directory") as cluster, Brake(cluster) as brake:
        yield cluster, brake


@pytest.fixture(scope="module")
def on_ceph(ceph: Stack) -> Iterator[tuple[Cluster, Brake]]:
    """The stack all tests over Ceph share; its disks are not small, so its host cannot be filled."""
    ceph.up(settings=SETTINGS)
    with closing(Cluster(ceph)) as cluster, Brake(cluster) as brake:
        yield cluster, brake
