"""Pieces of a domain document, joined and filled in with str.format by scripts written for PVC 1.0.

The machine is the one those scripts' guests expect: the first network interface in PCI slot 2 (where it is
called ens2), disks on one virtio-scsi controller. What the node decides anyway (emulator, console log) is
left out.
"""

from typing import Any, Final

libvirt_header: Final = """\
<domain type='kvm'>
  <name>{vm_name}</name>
  <uuid>{vm_uuid}</uuid>
  <description>{vm_description}</description>
  <memory unit='MiB'>{vm_memory}</memory>
  <vcpu>{vm_vcpus}</vcpu>
  <cpu>
    <topology sockets='1' cores='{vm_vcpus}' threads='1'/>
  </cpu>
  <os>
    <type arch='{vm_architecture}' machine='pc'>hvm</type>
    <boot dev='cdrom'/>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>restart</on_crash>
  <devices>
    <console type='pty'/>
"""

libvirt_footer: Final = """\
  </devices>
</domain>
"""

devices_default: Final = """\
    <controller type='usb' index='0' model='none'/>
    <controller type='pci' index='0' model='pci-root'/>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
"""

devices_serial: Final = """\
    <serial type='pty'/>
"""

devices_vnc: Final = """\
    <graphics type='vnc' port='-1' autoport='{vm_vnc_autoport}' listen='{vm_vnc_bind}'/>
"""

devices_scsi_controller: Final = """\
    <controller type='scsi' index='0' model='virtio-scsi'/>
"""

devices_disk_header: Final = """\
    <disk type='volume' device='disk'>
      <driver name='qemu' discard='unmap'/>
      <target dev='{disk_id}' bus='scsi'/>
      <source pool='{disk_pool}' volume='{vm_name}_{disk_id}'/>
"""

devices_disk_coordinator: Final = ""

devices_disk_footer: Final = """\
    </disk>
"""

devices_vhostmd: Final = ""

_NET_INTERFACE: Final = """\
    <interface type='bridge'>
      <mac address='{{eth_macaddr}}'/>
      <source bridge='{{eth_bridge}}'/>
      <model type='virtio'/>{address}
    </interface>
"""
_FIRST_ADDRESS: Final = "\n      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>"


class _NetInterface(str):
    """The piece for a network interface; the first one made from it gets its own PCI slot."""

    __slots__ = ("_made",)
    _made: bool

    def format(self, *args: Any, **values: Any) -> str:
        address = "" if getattr(self, "_made", False) else _FIRST_ADDRESS
        self._made = True
        return _NET_INTERFACE.format(address=address).format(**values)


devices_net_interface: Final = _NetInterface(_NET_INTERFACE.format(address=""))
