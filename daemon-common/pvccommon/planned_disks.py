"""The disks and CD-ROMs of a plan: from the storage template, and from the image of the profile.

An image's disks become copy-on-write clones. With a storage template they are, in order, its first disks that
have no source of their own, in the pool and not smaller than the image's; without one the VM has the image's
disks as they are.
"""

from collections.abc import Sequence

from pvccommon import names
from pvccommon.errors import Problem
from pvccommon.models import Image, ImageKind, ImageState, ImageVolume, Json, StorageTemplateDisk

MIB = 1024**2
GIB = 1024**3
# CD-ROM drives are named from the end of the alphabet, out of the way of disks.
MEDIA_ID, ANSWERS_ID = "sdz", "sdy"


def plan_image(image: Image | None, problems: list[Problem]) -> Json | None:
    """What the plan keeps of its image: {id, name, kind, node, hardware}; not ready is a problem."""
    if image is None:
        return None
    if image.state != ImageState.READY:
        problems.append(Problem("image", f"image {image.name} cannot be used: it is {image.state}"))
    return {
        "id": image.id,
        "name": image.name,
        "kind": image.kind,
        "node": image.node,
        "hardware": image.document.get("hardware"),
    }


def plan_volumes(
    vm: str, disks: Sequence[StorageTemplateDisk], image: Image | None, problems: list[Problem]
) -> list[Json]:
    """The VM's volumes, in the order of their disk ids."""
    sources = list(image.volumes) if image is not None and image.kind != ImageKind.ISO else []
    if not disks:
        return [_clone_as_it_is(vm, source) for source in sources]
    volumes = [
        _from_template(vm, disk) for disk in sorted(disks, key=lambda disk: names.disk_order(disk.disk_id))
    ]
    takers = [volume for volume in volumes if volume["source_volume"] is None]
    if len(takers) < len(sources):
        why = f"has {len(takers)} disks without a source, the image has {len(sources)}"
        problems.append(Problem("storage_template", why))
    for volume, source in zip(takers, sources, strict=False):
        _start_from(volume, source, problems)
    return volumes


def plan_cdroms(vm: str, image: Image | None, answers_mib: int, pool: str) -> list[Json]:
    """[{pool, volume, disk_id, size_bytes, temporary}]: the image's ISO, and a small one the script makes."""
    found = []
    if image is not None and image.kind == ImageKind.ISO:
        found += [
            _cdrom(source.pool, source.volume, MEDIA_ID, source.size_bytes, temporary=False)
            for source in image.volumes
        ]
    if answers_mib:
        volume = names.volume_name(vm, names.ANSWERS)
        found.append(_cdrom(pool, volume, ANSWERS_ID, answers_mib * MIB, temporary=True))
    return found


def _from_template(vm: str, disk: StorageTemplateDisk) -> Json:
    return {
        "pool": disk.pool,
        "volume": names.volume_name(vm, disk.disk_id),
        "disk_id": disk.disk_id,
        "size_bytes": disk.disk_size_gb * GIB if disk.disk_size_gb else None,
        "filesystem": disk.filesystem,
        "filesystem_args": list(disk.filesystem_args),
        "mountpoint": disk.mountpoint,
        "source_volume": disk.source_volume,
        "source_snapshot": None,
    }


def _clone_as_it_is(vm: str, source: ImageVolume) -> Json:
    return {
        "pool": source.pool,
        "volume": names.volume_name(vm, source.disk_id),
        "disk_id": source.disk_id,
        "size_bytes": source.size_bytes,
        "filesystem": None,
        "filesystem_args": [],
        "mountpoint": None,
        "source_volume": source.volume,
        "source_snapshot": names.IMAGE_SNAPSHOT,
    }


def _start_from(volume: Json, source: ImageVolume, problems: list[Problem]) -> None:
    """Make a planned blank disk a clone of an image's, of its own size."""
    path = f"disk {volume['disk_id']}"
    if volume["pool"] != source.pool:
        why = f"is in pool {volume['pool']}, the image in pool {source.pool}; a clone stays in its pool"
        problems.append(Problem(path, why))
    if (volume["size_bytes"] or source.size_bytes) < source.size_bytes:
        why = f"is smaller than the image's disk of {-(-source.size_bytes // MIB)} MiB"
        problems.append(Problem(path, why))
    volume["size_bytes"] = volume["size_bytes"] or source.size_bytes
    volume["source_volume"], volume["source_snapshot"] = source.volume, names.IMAGE_SNAPSHOT


def _cdrom(pool: str, volume: str, disk_id: str, size_bytes: int, *, temporary: bool) -> Json:
    return {
        "pool": pool,
        "volume": volume,
        "disk_id": disk_id,
        "size_bytes": size_bytes,
        "temporary": temporary,
    }
