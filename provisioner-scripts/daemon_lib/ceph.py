"""Volumes, as scripts written for PVC 1.0 ask for them; the broker decides by the plan of the build.

Every call returns (success, message). The first argument is the handle of open_zk and is not looked at.
"""

from vmbuilder import session
from vmbuilder.errors import BrokerError

Outcome = tuple[bool, str]


def add_volume(
    zk: object, pool: str, name: str, size: str, force_flag: bool = False, zk_only: bool = False
) -> Outcome:
    """Create an empty volume, with the size of the plan."""
    return _ask(
        "volume.create", pool, name, f'Created RBD volume "{name}" of size "{size}" in pool "{pool}".'
    )


def clone_volume(zk: object, pool: str, source: str, new: str, force_flag: bool = False) -> Outcome:
    """Clone the plan's source volume."""
    return _ask("volume.clone", pool, new, f'Cloned RBD volume "{source}" to "{new}" in pool "{pool}".')


def map_volume(zk: object, pool: str, name: str) -> Outcome:
    """Make a volume a block device; the message is its path."""
    return _ask("volume.map", pool, name, f"/dev/rbd/{pool}/{name}")


def unmap_volume(zk: object, pool: str, name: str) -> Outcome:
    """Undo map_volume."""
    return _ask("volume.unmap", pool, name, f'Unmapped RBD volume "{name}" in pool "{pool}".')


def _ask(verb: str, pool: str, volume: str, message: str) -> Outcome:
    try:
        session.request(verb, pool=pool, volume=volume)
    except BrokerError as exc:
        return False, f"ERROR: {exc}"
    return True, message
