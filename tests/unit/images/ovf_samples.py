"""OVF documents, made piece by piece."""

from collections.abc import Sequence

STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
PREFIX_OF_TAG = {"Item": "rasd", "StorageItem": "sasd", "EthernetPortItem": "epasd"}

FILE = '<File ovf:id="file1" ovf:href="disk1.vmdk" ovf:size="1000"/>'
DISK = (
    '<Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:capacity="10" '
    f'ovf:capacityAllocationUnits="byte * 2^30" ovf:format="{STREAM_OPTIMIZED}"/>'
)
NETWORK = '<Network ovf:name="VM Network"><Description>of the office</Description></Network>'


def item(resource_type: int | str, *, tag: str = "Item", attributes: str = "", **fields: object) -> str:
    """A hardware item; fields are children such as VirtualQuantity=2."""
    prefix = PREFIX_OF_TAG[tag]
    texts = "".join(
        f"<{prefix}:{name}>{value}</{prefix}:{name}>"
        for name, value in {**fields, "ResourceType": resource_type}.items()
    )
    return f"<{tag} {attributes}>{texts}</{tag}>"


def cpu(count: object = 2, **fields: object) -> str:
    return item(3, InstanceID=1, VirtualQuantity=count, AllocationUnits="hertz * 10^6", **fields)


def memory(quantity: object = 2048, units: str | None = "byte * 2^20") -> str:
    return item(4, InstanceID=2, VirtualQuantity=quantity, **({"AllocationUnits": units} if units else {}))


def controller(resource_type: int, subtype: str, instance: int = 3, address: int = 0) -> str:
    return item(resource_type, InstanceID=instance, ResourceSubType=subtype, Address=address)


def drive(
    disk: str = "vmdisk1", *, parent: int = 3, unit: int = 0, instance: int = 10, **more: object
) -> str:
    place = {"Parent": parent, "AddressOnParent": unit, "InstanceID": instance}
    return item(17, HostResource=f"ovf:/disk/{disk}", **place, **more)


def nic(model: str = "VmxNet3", network: str = "VM Network", instance: int = 20, **more: object) -> str:
    return item(10, InstanceID=instance, ResourceSubType=model, Connection=network, **more)


ITEMS = (cpu(), memory(), controller(6, "lsilogic"), drive(), nic())


def system(items: Sequence[str] = ITEMS, *, identity: str = "web", more: str = "", section: str = "") -> str:
    return f"""
  <VirtualSystem ovf:id="{identity}">
    <Info>A virtual machine</Info>
    <Name>{identity}</Name>
    <OperatingSystemSection ovf:id="96" vmw:osType="debian11_64Guest">
      <Info>The guest</Info><Description>Debian 64-Bit</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <System><vssd:VirtualSystemType>vmx-14</vssd:VirtualSystemType></System>
      {"".join(items)}{section}
    </VirtualHardwareSection>{more}
  </VirtualSystem>"""


def ovf(
    *,
    version: int = 1,
    files: str = FILE,
    disks: str = DISK,
    networks: str = NETWORK,
    systems: str | None = None,
    items: Sequence[str] = ITEMS,
    more: str = "",
    prolog: str = '<?xml version="1.0" encoding="UTF-8"?>',
) -> bytes:
    """A whole document; every part can be another."""
    envelope = f"http://schemas.dmtf.org/ovf/envelope/{version}"
    return f"""{prolog}
<Envelope xmlns="{envelope}" xmlns:ovf="{envelope}" xmlns:vmw="http://www.vmware.com/schema/ovf"
    xmlns:rasd="{CIM}/CIM_ResourceAllocationSettingData" xmlns:vssd="{CIM}/CIM_VirtualSystemSettingData"
    xmlns:sasd="{CIM}/CIM_StorageAllocationSettingData"
    xmlns:epasd="{CIM}/CIM_EthernetPortAllocationSettingData"
    xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References>{files}</References>
  <DiskSection><Info>Disks</Info>{disks}</DiskSection>
  <NetworkSection><Info>Networks</Info>{networks}</NetworkSection>
  {system(items) if systems is None else systems}
  {more}
</Envelope>""".encode()
