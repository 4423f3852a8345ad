"""The base class and context managers of scripts written for PVC 1.0."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from daemon_lib.mounting import mounts_by_broker
from vmbuilder import session
from vmbuilder.builder import VMBuilder
from vmbuilder.chroot import entered as chroot
from vmbuilder.errors import ClusterError, ProvisioningError, ValidationError

__all__ = ["ClusterError", "ProvisioningError", "VMBuilder", "ValidationError", "chroot", "open_zk"]

if session.in_build():
    mounts_by_broker()


@contextmanager
def open_zk(config: Mapping[str, Any]) -> Iterator[object]:
    """A handle to pass to daemon_lib.ceph; the broker needs none."""
    yield object()
