"""From the checked document to the one libvirt gets."""

from pathlib import Path

from lxml import etree
from plans import CDROMS, PLAN, plan, sdk_xml

from pvccommon.storage.pool import BackingFile, DiskSource
from pvcnoded.domain_policy import check_domain
from pvcnoded.domain_xml import refresh_disks, resolve_domain, source_to_come, without_media

LOG = Path("/var/log/console/web1.log")


def resolve(of: dict, source: DiskSource | None = None) -> "etree._Element":
    checked = check_domain(sdk_xml(of), of)
    before = etree.tostring(checked)
    text = resolve_domain(checked, of, lambda pool, volume: source or source_to_come(pool, volume), LOG)
    assert etree.tostring(checked) == before, "the checked document must stay as it is"
    return etree.fromstring(text)


def test_volumes_become_the_files_behind_them() -> None:
    backing = (BackingFile("/pool/base.raw", "raw"),)
    root = resolve(plan(), DiskSource("file", "/pool/web1_sda.qcow2", "qcow2", backing))
    disk = root.find("devices/disk")
    assert disk.get("type") == "file"
    assert disk.find("source").attrib == {"file": "/pool/web1_sda.qcow2"}
    assert disk.find("driver").get("type") == "qcow2"
    assert disk.find("backingStore/source").get("file") == "/pool/base.raw"
    assert disk.find("backingStore/backingStore") is not None, "the chain must end, or libvirt probes"


def test_images_of_a_cluster_become_network_disks() -> None:
    """The key itself is nowhere in the document, only the name libvirt knows it by."""
    name = "5a1c8f2e-0000-4000-8000-000000000001"
    hosts = (("10.0.0.1", 6789), ("fd00::1", 6789))
    source = DiskSource("network", "vms/web1_sda", "raw", (), "rbd", hosts, "pvc", name)
    disk = resolve(plan(), source).find("devices/disk")
    assert (disk.get("type"), disk.find("driver").get("type")) == ("network", "raw")
    found = disk.find("source")
    assert found.attrib == {"protocol": "rbd", "name": "vms/web1_sda"}
    assert [host.attrib for host in found.findall("host")] == [
        {"name": host, "port": str(port)} for host, port in hosts
    ]
    assert found.find("auth").get("username") == "pvc"
    assert found.find("auth/secret").attrib == {"type": "ceph", "uuid": name}
    again = refresh_disks(
        etree.tostring(disk.getroottree().getroot(), encoding="unicode"),
        [{"pool": "vms", "volume": "web1_sda", "disk_id": "sda"}],
        lambda pool, volume: DiskSource("file", "/pool/a.raw", "raw"),
    )
    assert etree.fromstring(again).find("devices/disk/source").attrib == {"file": "/pool/a.raw"}


def test_disks_follow_their_volumes_before_a_start() -> None:
    first = etree.tostring(resolve(plan(), DiskSource("file", "/pool/a.raw", "raw")), encoding="unicode")
    volumes = [{"pool": "vms", "volume": f"web1_{disk}", "disk_id": disk} for disk in ("sda", "sdb")]
    moved = DiskSource("file", "/pool/b.qcow2", "qcow2", (BackingFile("/pool/a.raw", "raw"),))
    root = etree.fromstring(refresh_disks(first, volumes, lambda pool, volume: moved))
    assert [disk.find("source").get("file") for disk in root.findall("devices/disk")] == ["/pool/b.qcow2"] * 2
    assert [disk.find("backingStore/source").get("file") for disk in root.findall("devices/disk")] == [
        "/pool/a.raw"
    ] * 2


def test_networks_become_bridges_or_user_mode() -> None:
    bridge = resolve(plan()).find("devices/interface")
    assert (bridge.get("type"), bridge.find("source").get("bridge")) == ("bridge", "brupstream")
    user = resolve(plan(networks=[{**PLAN["networks"][0], "user": True}])).find("devices/interface")
    assert (user.get("type"), user.find("source")) == ("user", None)


def test_console_is_logged_where_the_node_says() -> None:
    assert resolve(plan()).find("devices/serial/log").get("file") == str(LOG)


def test_cpu_and_type_are_the_node_s() -> None:
    of = plan(domain={**PLAN["domain"], "type": "kvm", "cpu_mode": "host-passthrough"})
    checked = check_domain(sdk_xml(plan()), of)
    root = etree.fromstring(resolve_domain(checked, of, source_to_come, LOG))
    assert root.get("type") == "kvm"
    assert root.find("cpu").get("mode") == "host-passthrough"
    assert root.find("cpu/topology").get("cores") == "2"


def test_cdroms_end_a_reboot_and_go_without_a_trace() -> None:
    of = plan(cdroms=CDROMS)
    installing = resolve(of)
    drives = installing.findall("devices/disk[@device='cdrom']")
    assert [drive.find("boot") is not None for drive in drives] == [True, False], "only the medium boots"
    assert all(drive.find("readonly") is not None for drive in drives)
    assert installing.findtext("on_reboot") == "destroy"
    root_disk = installing.find("devices/disk[@device='disk']/boot")
    assert root_disk is not None and root_disk.get("order") == "2"
    left = etree.fromstring(without_media(etree.tostring(installing, encoding="unicode")))
    assert [disk.get("device") for disk in left.findall("devices/disk")] == ["disk", "disk"]
    assert left.findtext("on_reboot") == "restart"


def test_only_the_cdroms_that_are_there_are_left_in() -> None:
    of = plan(cdroms=CDROMS)
    checked = check_domain(sdk_xml(of), of)
    checked.find("on_reboot").text = "destroy"
    for media, targets, action in (
        ({("vms", "image_7_iso")}, ["sdz"], "destroy"),
        ((), [], "destroy"),
        (None, ["sdz", "sdy"], "destroy"),
    ):
        root = etree.fromstring(resolve_domain(checked, of, source_to_come, LOG, media=media))
        found = [drive.get("dev") for drive in root.findall("devices/disk[@device='cdrom']/target")]
        assert (found, root.findtext("on_reboot")) == (targets, action)
    assert len(checked.findall("devices/disk[@device='cdrom']")) == 2, "the checked document is not changed"


def test_a_reboot_stays_what_the_script_wrote_without_cdroms() -> None:
    of = plan(cdroms=CDROMS)
    checked = check_domain(sdk_xml(of), of)
    root = etree.fromstring(resolve_domain(checked, of, source_to_come, LOG, media=()))
    assert root.findtext("on_reboot") == "restart"
