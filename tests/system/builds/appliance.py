"""An appliance made of a VM's disks, as other systems export one: an OVA with VMDK streams and a manifest."""

import hashlib
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

MIB = 1024**2
ENVELOPE = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References>{references}</References>
 <DiskSection><Info>disks</Info>{disks}</DiskSection>
 <VirtualSystem ovf:id="{name}"><Info>a machine</Info><Name>{name}</Name>
  <OperatingSystemSection ovf:id="96"><Info>Debian</Info></OperatingSystemSection>
  <VirtualHardwareSection><Info>hardware</Info>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
    <rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
    <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>{memory_mib}</rasd:VirtualQuantity></Item>
   <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
    <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
   {drives}
  </VirtualHardwareSection></VirtualSystem></Envelope>
"""
REFERENCE = '<File ovf:id="file{number}" ovf:href="{file}" ovf:size="{file_bytes}"/>'
DISK = (
    '<Disk ovf:diskId="disk{number}" ovf:fileRef="file{number}" ovf:capacity="{disk_bytes}"'
    ' ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>'
)
DRIVE = (
    "<Item><rasd:AddressOnParent>{number}</rasd:AddressOnParent>"
    "<rasd:HostResource>ovf:/disk/disk{number}</rasd:HostResource><rasd:InstanceID>1{number}</rasd:InstanceID>"
    "<rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>"
)


def make_ova(target: Path, disks: Mapping[str, Path], memory_mib: int) -> None:
    """Pack raw disks, by their ids; beside them and `target` there must be room for their VMDKs."""
    streams = [_stream_of(disk, target.with_name(f"{disk_id}.vmdk")) for disk_id, disk in disks.items()]
    document = target.with_suffix(".ovf")
    document.write_text(_describe(target.stem, list(disks.values()), streams, memory_mib))
    manifest = target.with_suffix(".mf")
    files = [document, *streams]
    manifest.write_text("".join(f"SHA256({file.name})= {sha256_of(file)}\n" for file in files))
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in (*files, manifest):
            archive.add(file, file.name)
            file.unlink()


def keep_mounts(disk: Path, start: int, *mountpoints: str) -> None:
    """Leave only these in fstab(5) of the clean ext4 at `start` of a raw disk: it has no other disks."""
    place = f"{disk}?offset={start}"
    known = subprocess.check_output(["debugfs", "-R", "cat /etc/fstab", place], text=True)
    kept = disk.with_name("fstab")
    lines = [line for line in known.splitlines(keepends=True) if line.split()[1] in mountpoints]
    kept.write_text("".join(lines))
    for request in ("rm /etc/fstab", f"write {kept} /etc/fstab"):
        subprocess.run(["debugfs", "-w", "-R", request, place], check=True, capture_output=True)
    kept.unlink()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stream_of(raw: Path, vmdk: Path) -> Path:
    options = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *options, str(raw), str(vmdk)], check=True)
    return vmdk


def _describe(name: str, disks: list[Path], streams: list[Path], memory_mib: int) -> str:
    values = list(_values(disks, streams))
    lists = {"references": REFERENCE, "disks": DISK, "drives": DRIVE}
    filled = {key: "".join(part.format(**value) for value in values) for key, part in lists.items()}
    return ENVELOPE.format(name=name, memory_mib=memory_mib, **filled)


def _values(disks: list[Path], streams: list[Path]) -> Iterator[dict[str, object]]:
    for number, (disk, stream) in enumerate(zip(disks, streams, strict=True)):
        sizes = {"disk_bytes": disk.stat().st_size, "file_bytes": stream.stat().st_size}
        yield {"number": number, "file": stream.name, **sizes}
