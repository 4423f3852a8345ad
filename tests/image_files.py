"""Archives as other systems export them, made on the spot."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:id="file1" ovf:href="disk1.vmdk"/></References>
 <DiskSection><Info>disks</Info>
  <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{capacity}"
   ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  <Disk ovf:diskId="disk2" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30"/></DiskSection>
 <NetworkSection><Info>networks</Info><Network ovf:name="VM Network"/></NetworkSection>
 <VirtualSystem ovf:id="web"><Info>a machine</Info><Name>web</Name>
  <OperatingSystemSection ovf:id="96"><Info>Debian</Info></OperatingSystemSection>
  <VirtualHardwareSection><Info>hardware</Info>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
    <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
    <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>768</rasd:VirtualQuantity></Item>
   <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
    <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
    <rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/disk2</rasd:HostResource>
    <rasd:InstanceID>5</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
  </VirtualHardwareSection></VirtualSystem></Envelope>"""


def ova(directory: Path, data: bytes, *, wrong_digest: bool = False) -> bytes:
    """An OVA of two disks: one with this content, in a stream of VMDK, and a blank one of 1 GiB."""
    raw, vmdk = directory / "disk.raw", directory / "disk.vmdk"
    raw.write_bytes(data)
    convert = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", str(raw), str(vmdk)]
    subprocess.run(convert, check=True)
    files = {"x.ovf": OVF.format(capacity=len(data)).encode(), "disk1.vmdk": vmdk.read_bytes()}
    lines = [f"SHA256({name})= {hashlib.sha256(text).hexdigest()}\n" for name, text in files.items()]
    if wrong_digest:
        lines[1] = lines[1].replace(lines[1][-8:-1], "0000000")
    files["x.mf"] = "".join(lines).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return archive.getvalue()
