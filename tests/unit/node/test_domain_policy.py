"""What a script's domain XML may hold, and what is refused with the element and the rule."""

import pytest
from plans import CDROMS, PLAN, UUID, plan, sdk_xml

from pvccommon.errors import WrongInput
from pvcnoded.domain_policy import check_domain


def document(
    devices: str = "", *, top: str = "", attributes: str = "type='qemu'", memory: str = "1024"
) -> str:
    return f"""<domain {attributes}><name>web1</name><uuid>{UUID}</uuid>{top}
      <memory unit='MiB'>{memory}</memory><vcpu>2</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
      <devices>{devices}</devices></domain>"""


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
@pytest.mark.parametrize("vnc", [True, False])
def test_the_sdk_s_own_document_passes(firmware: str, vnc: bool) -> None:
    of = plan(domain={**PLAN["domain"], "firmware": firmware, "vnc": vnc})
    assert check_domain(sdk_xml(of), of).findtext("name") == "web1"


def test_older_shapes_pass() -> None:
    devices = """<emulator>/usr/bin/qemu-system-x86_64</emulator>
      <disk type='network' device='disk'><driver name='qemu' discard='unmap'/>
        <auth username='libvirt'><secret type='ceph' uuid='b5a5a2d0-6f0f-4b8e-9a53-0d6f2f1c1a11'/></auth>
        <source protocol='rbd' name='vms/web1_sda'><host name='mon1' port='6789'/></source>
        <target dev='sda' bus='scsi'/></disk>
      <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='brupstream'/>
        <model type='virtio'/></interface>"""
    assert check_domain(document(devices), plan()) is not None


DISK = "<disk type='volume'><source pool='{}' volume='{}'/><target dev='sda' bus='scsi'/></disk>"
REFUSED = {
    "host file": (
        "<disk type='file'><source file='/etc/shadow'/><target dev='sda'/></disk>",
        "devices/disk> type",
    ),
    "host device": (
        "<disk type='block'><source dev='/dev/vda'/><target dev='sda'/></disk>",
        "devices/disk> type",
    ),
    "foreign volume": (DISK.format("vms", "db1_sda"), "not one of this build's"),
    "foreign pool": (DISK.format("other", "web1_sda"), "not one of this build's"),
    "same volume twice": (DISK.format("vms", "web1_sda") * 2, "attached twice"),
    "backing store": (
        "<disk type='volume'><source pool='vms' volume='web1_sda'/><backingStore type='file'>"
        "<format type='raw'/><source file='/etc/shadow'/></backingStore><target dev='sda'/></disk>",
        "devices/disk/backingStore",
    ),
    "format given": (
        "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='vms' volume='web1_sda'/>"
        "<target dev='sda'/></disk>",
        "devices/disk/driver> type",
    ),
    "pci passthrough": (
        "<hostdev mode='subsystem' type='pci'>"
        "<source><address domain='0' bus='0' slot='1' function='0'/></source></hostdev>",
        "devices/hostdev",
    ),
    "host directory": (
        "<filesystem type='mount'><source dir='/etc'/><target dir='etc'/></filesystem>",
        "devices/filesystem",
    ),
    "foreign bridge": (
        "<interface type='bridge'><source bridge='br0'/></interface>",
        "not on one of the plan's",
    ),
    "foreign network": (
        "<interface type='network'><source network='7'/></interface>",
        "not on one of the plan's",
    ),
    "ethernet with script": (
        "<interface type='ethernet'><script path='/bin/sh'/></interface>",
        "devices/interface/script",
    ),
    "emulator": ("<emulator>/bin/sh</emulator>", "not a QEMU"),
    "serial to file": ("<serial type='file'><source path='/etc/passwd'/></serial>", "devices/serial> type"),
    "serial log": ("<serial type='pty'><log file='/etc/passwd'/></serial>", "devices/serial/log"),
    "channel socket": (
        "<channel type='unix'><source mode='connect' path='/run/libvirt/libvirt-sock'/>"
        "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        "devices/channel/source",
    ),
    "vnc on all addresses": ("<graphics type='vnc' port='-1' listen='0.0.0.0'/>", "must listen on"),
    "rng from a file": (
        "<rng model='virtio'><backend model='random'>/dev/vda</backend></rng>",
        "must be /dev/urandom",
    ),
    "tpm": ("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "devices/tpm"),
    "shared memory": ("<shmem name='x'/>", "devices/shmem"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_devices_of_the_host_are_refused(name: str) -> None:
    devices, rule = REFUSED[name]
    with pytest.raises(WrongInput) as caught:
        check_domain(document(devices), plan())
    assert rule in caught.value.message


REFUSED_DOCUMENTS = {
    "other name": (document().replace("<name>web1<", "<name>db1<"), "the plan says 'web1'"),
    "other uuid": (document().replace(UUID, UUID.replace("b", "c")), "the plan says"),
    "too much memory": (document(memory="1025"), "at most the planned 1024 MiB"),
    "memory overflow": (document(memory="99999999999999"), "at most the planned"),
    "too many cpus": (document().replace("<vcpu>2", "<vcpu>3"), "to the planned 2"),
    "security label": (document(top="<seclabel type='none'/>"), "<seclabel>"),
    "loader": (document().replace("</os>", "<loader>/etc/shadow</loader></os>"), "<os/loader>"),
    "kernel": (document().replace("</os>", "<kernel>/etc/shadow</kernel></os>"), "<os/kernel>"),
    "smbios": (document().replace("</os>", "<smbios mode='host'/></os>"), "<os/smbios>"),
    "memory backing": (
        document(top="<memoryBacking><access mode='shared'/></memoryBacking>"),
        "memoryBacking",
    ),
    "cpu pinning": (document(top="<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"), "cputune"),
    "qemu command line": (
        document(
            attributes="type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
            top="<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>",
        ),
        "commandline",
    ),
    "lxc": (document(attributes="type='lxc'"), "<> type"),
    "not a domain": ("<network><name>x</name></network>", "root element is <network>"),
    "not xml": ("<domain", "well-formed"),
    "empty": ("", "well-formed"),
    "not the schema": (document("<disk/>"), "libvirt's schema refuses"),
    "doctype": (f"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>{document()}", "DOCTYPE"),
    "nul": ("<domain>\0</domain>", "well-formed"),
    "too large": (document(top=f"<description>{'x' * 300_000}</description>"), "larger than"),
}


@pytest.mark.parametrize("name", REFUSED_DOCUMENTS)
def test_documents_that_reach_for_more_are_refused(name: str) -> None:
    xml, rule = REFUSED_DOCUMENTS[name]
    with pytest.raises(WrongInput) as caught:
        check_domain(xml, plan())
    assert rule in caught.value.message


def test_every_violation_is_named() -> None:
    devices = DISK.format("vms", "a") + "<tpm><backend type='emulator'/></tpm>"
    with pytest.raises(WrongInput) as caught:
        check_domain(document(devices, memory="4096"), plan())
    assert len(caught.value.problems) >= 4


def test_a_medium_cannot_be_a_disk_nor_a_disk_a_medium() -> None:
    of = plan(cdroms=CDROMS)
    assert check_domain(sdk_xml(of), of) is not None
    for wrong in ("device='cdrom'", "device='disk'"):
        other = {"device='cdrom'": "device='disk'", "device='disk'": "device='cdrom'"}[wrong]
        xml = sdk_xml(of).replace("'", '"').replace(wrong.replace("'", '"'), other.replace("'", '"'))
        with pytest.raises(WrongInput) as caught:
            check_domain(xml, of)
        assert "can only be a" in caught.value.message
