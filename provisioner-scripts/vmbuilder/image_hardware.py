"""The hardware an image was made for, as devices of the VM.

`Context.image["hardware"]`: {disks [{disk_id, bus}], nics [{network, model, mac}], firmware, …}, with the
buses and models that the import has chosen by the kind of the guest's system.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vmbuilder import log
from vmbuilder.context import Context, PlanNetwork
from vmbuilder.domain import Devices
from vmbuilder.errors import ValidationError

AUTO: Final = "auto"
VIRTIO: Final = "virtio"
EMULATED: Final = "emulated"
# For guests with virtio drivers, and for those without: AHCI and e1000e are what nearly every one can drive.
VIRTIO_BUS: Final = "scsi"
EMULATED_BUS: Final = "sata"
EMULATED_NIC: Final = "e1000e"


@dataclass(frozen=True)
class ImageHardware:
    """`buses` of the disks and `nics` (network, model) in the image's order."""

    firmware: str | None
    buses: tuple[str, ...]
    nics: tuple[tuple[str, str], ...]


def read_hardware(context: Context) -> ImageHardware:
    """What the plan knows of the image's hardware; nothing for an image that is only disks."""
    hardware: Mapping[str, Any] = (context.image or {}).get("hardware") or {}
    return ImageHardware(
        hardware.get("firmware"),
        tuple(disk["bus"] for disk in hardware.get("disks") or ()),
        tuple((nic["network"], nic["model"]) for nic in hardware.get("nics") or ()),
    )


def with_drivers(hardware: ImageHardware, *, disks: str = AUTO, nics: str = AUTO) -> ImageHardware:
    """The hardware with all disks, and all cards, virtio or emulated; AUTO leaves them as the import chose.

    Emulated cards keep the model the image asks for, if that is one.
    """
    buses, models = hardware.buses, hardware.nics
    if disks != AUTO:
        buses = (VIRTIO_BUS if disks == VIRTIO else EMULATED_BUS,) * len(buses)
    if nics == VIRTIO:
        models = tuple((network, VIRTIO) for network, _ in models)
    elif nics == EMULATED:
        models = tuple((network, EMULATED_NIC if model == VIRTIO else model) for network, model in models)
    return replace(hardware, buses=buses, nics=models)


def devices(context: Context, hardware: ImageHardware) -> Devices:
    """For `domain_xml`: the n-th clone of the image has the n-th bus, the n-th card the n-th model."""
    clones = [volume.disk_id for volume in context.volumes if volume.source_snapshot]
    buses = dict(zip(clones, hardware.buses, strict=False))
    models = tuple(model for _, model in hardware.nics)
    rest = EMULATED_BUS if set(hardware.buses) == {EMULATED_BUS} else None
    nic, cdrom = models[0] if models else VIRTIO, rest or VIRTIO_BUS
    return Devices(rest, nic, disk_buses=buses, nic_models=models, cdrom_bus=cdrom)


def connect(context: Context, hardware: ImageHardware, texts: Sequence[str]) -> tuple[PlanNetwork, ...]:
    """The networks of the image's cards, in their order. `texts`: "name in the OVF=VNI".

    Without texts the first card is on the profile's first network, and so on. Raises ValidationError with all
    that is wrong.
    """
    if not texts:
        _log_difference(len(hardware.nics), len(context.networks))
        return context.networks
    wanted = dict(text.rpartition("=")[::2] for text in texts)
    free = list(context.networks)
    problems = [
        f"the image has no network {name!r}"
        for name in wanted
        if name not in {network for network, _ in hardware.nics}
    ]
    found = []
    for name, _ in hardware.nics:
        vni = wanted.get(name)
        match = next((network for network in free if network.vni == vni), None)
        if vni is None:
            problems.append(f"the image's network {name!r} is not mapped")
        elif match is None:
            problems.append(f"the profile has no network {vni} (left) for the image's network {name!r}")
        else:
            free.remove(match)
            found.append(match)
    if problems:
        raise ValidationError(f"argument networks: {'; '.join(dict.fromkeys(problems))}")
    if free:
        unused = ", ".join(network.vni for network in free)
        log.write(log.Level.WARNING, f"no card of the image is on the profile's networks {unused}")
    return tuple(found)


def _log_difference(cards: int, networks: int) -> None:
    if cards > networks:
        log.write(log.Level.WARNING, f"the image has {cards} network cards, the profile {networks} networks")
