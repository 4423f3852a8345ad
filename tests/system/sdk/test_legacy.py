"""Scripts written for PVC 1.0: the modules they import, used the way they use them."""

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sandboxed import GIB, SandboxedBuild, plan, volume

from pvccommon.storage.directory import DirectoryPool
from pvcnoded.context import script_context
from pvcnoded.domain_policy import check_domain

pytestmark = pytest.mark.system
MIB = 1024**2

SCRIPT = """
from daemon_lib.vmbuilder import VMBuilder


class VMBuilderScript(VMBuilder):
    def setup(self):
        import daemon_lib.common as pvc_common

        code, out, err = pvc_common.run_os_command("which mkfs.ext4")
        if code:
            self.fail("no mkfs.ext4")
        self.log_info(out)

    def create(self):
        import daemon_lib.libvirt_schema as schema

        system = self.vm_data["system_details"]
        text = schema.libvirt_header.format(
            vm_name=self.vm_name, vm_uuid=self.vm_uuid, vm_description="old", vm_memory=system["vram_mb"],
            vm_vcpus=system["vcpu_count"], vm_architecture=self.vm_data["system_architecture"],
        )
        for disk in self.vm_data["volumes"]:
            text += schema.devices_disk_header.format(
                ceph_storage_secret=self.vm_data["ceph_monitor_secret"], disk_pool=disk["pool"],
                vm_name=self.vm_name, disk_id=disk["disk_id"],
            )
            for monitor in self.vm_data["ceph_monitor_list"]:
                text += schema.devices_disk_coordinator.format(
                    coordinator_name=monitor, coordinator_ceph_mon_port=self.vm_data["ceph_monitor_port"]
                )
            text += schema.devices_disk_footer
        text += schema.devices_vhostmd
        for number, network in enumerate(self.vm_data["networks"]):
            text += schema.devices_net_interface.format(
                eth_macaddr=f"52:54:00:00:00:0{(self.vm_id + number) % 16}", eth_bridge=network["eth_bridge"]
            )
        text += schema.devices_default
        text += schema.devices_serial.format(vm_name=self.vm_name)
        return text + schema.devices_scsi_controller + schema.libvirt_footer

    def prepare(self):
        import os
        from daemon_lib.vmbuilder import open_zk
        from pvcworkerd.Daemon import config
        import daemon_lib.ceph as pvc_ceph
        import daemon_lib.common as pvc_common

        for disk in self.vm_data["volumes"]:
            name = f"{self.vm_name}_{disk['disk_id']}"
            with open_zk(config) as zk:
                success, message = pvc_ceph.add_volume(zk, disk["pool"], name, f"{disk['disk_size_gb']}G")
            self.log_info(message)
            if not success:
                self.fail("cannot add")
            with open_zk(config) as zk:
                success, message = pvc_ceph.map_volume(zk, disk["pool"], name)
            if not success:
                self.fail("cannot map")
            disk["device"] = message
            command = ["mkswap"] if disk["filesystem"] == "swap" else [f"mkfs.{disk['filesystem']}", "-q"]
            code, out, err = pvc_common.run_os_command([*command, message])
            if code:
                self.fail(err)
        with open_zk(config) as zk:
            self.log_info("FOREIGN %s %s" % pvc_ceph.map_volume(zk, "vms", "other_sda"))
        os.mkdir("/tmp/target")
        for disk in self.vm_data["volumes"]:
            if disk["mountpoint"]:
                path = f"/tmp/target{disk['mountpoint']}".rstrip("/")
                if not os.path.isdir(path):
                    os.mkdir(path)
                code, out, err = pvc_common.run_os_command(f"mount {disk['device']} {path}")
                if code:
                    self.fail(err)

    def install(self):
        import os
        from daemon_lib.vmbuilder import chroot

        os.mkdir("/tmp/target/dev")
        if os.system("mount --bind /dev /tmp/target/dev"):
            self.fail("bind")
        with open("/tmp/target/hostname", "w") as stream:
            stream.write(self.vm_name)
        with chroot("/tmp/target"):
            print("INSIDE", sorted(os.listdir("/")), os.path.exists("/dev/rbd/vms/web1_sda"))
        print("OUTSIDE", os.path.exists("/etc/os-release"))
        print("REFUSED", os.system("mount /dev/loop-control /mnt 2>/dev/null") >> 8 != 0)

    def cleanup(self):
        import os
        from daemon_lib.vmbuilder import open_zk
        from pvcworkerd.Daemon import config
        import daemon_lib.ceph as pvc_ceph
        import daemon_lib.common as pvc_common

        print("UNMOUNT", pvc_common.run_os_command("umount /tmp/target/dev")[0])
        for disk in reversed(self.vm_data["volumes"]):
            if disk["mountpoint"]:
                print("UNMOUNT", os.system(f"umount /tmp/target{disk['mountpoint']}"))
            with open_zk(config) as zk:
                print("UNMAP", *pvc_ceph.unmap_volume(zk, disk["pool"], f"{self.vm_name}_{disk['disk_id']}"))
"""

DISKS = [
    volume("sda", filesystem="ext4", mountpoint="/"),
    volume("sdb", filesystem="swap"),
    volume("sdc", filesystem="xfs", mountpoint="/srv"),
]
VM_DATA: dict[str, Any] = {
    "script_arguments": {},
    "system_details": {"vcpu_count": 2, "vram_mb": 1024},
    "networks": [{"vni": "1000", "eth_bridge": "vmbr1000"}, {"vni": "2000", "eth_bridge": "vmbr2000"}],
    "volumes": [{**disk, "disk_size_gb": 1, "filesystem_args": ""} for disk in DISKS],
    "system_architecture": "x86_64",
    "ceph_monitor_list": ["mon1"],
    "ceph_monitor_port": 6789,
    "ceph_monitor_secret": "",
}
PLAN = plan(
    volumes=DISKS,
    vm_data=VM_DATA,
    api_version=None,
    networks=[
        {"vni": vni, "mac": f"52:54:01:00:{vni[:2]}:00", "bridge": f"vmbr{vni}"} for vni in ("1000", "2000")
    ],
)


def test_old_script_runs_unchanged(pool: DirectoryPool) -> None:
    build = SandboxedBuild(pool, PLAN)
    document = build.run(SCRIPT)
    policy = {"vm": {"name": "web1", "uuid": PLAN["vm_uuid"]}, "domain": {"vnc": False, "vnc_bind": None}}
    policy["domain"] |= {"memory_mib": 1024, "vcpus": 2}
    checked = check_domain(document, {**PLAN, **policy})
    slots = [len(interface.findall("address")) for interface in checked.findall("devices/interface")]
    assert slots == [1, 0], "the first interface has its slot"
    printed = [line for line in build.log.lines if line[0].isupper()]
    assert printed[0] == "INSIDE ['dev', 'hostname', 'lost+found', 'srv'] True"
    assert printed[1:] == [
        "OUTSIDE True",
        "REFUSED True",
        "UNMOUNT 0",
        "UNMOUNT 0",
        'UNMAP True Unmapped RBD volume "web1_sdc" in pool "vms".',
        'UNMAP True Unmapped RBD volume "web1_sdb" in pool "vms".',
        "UNMOUNT 0",
        'UNMAP True Unmapped RBD volume "web1_sda" in pool "vms".',
    ]
    assert any(line.startswith("<6>FOREIGN False") for line in build.log.lines)
    image = Path(pool.disk_source("web1_sda").path)
    assert (
        subprocess.check_output(["debugfs", "-R", "cat /hostname", image], stderr=subprocess.DEVNULL)
        == b"web1"
    )
    assert image.stat().st_size == GIB


OVA_SCRIPT = """
from daemon_lib.vmbuilder import VMBuilder


class VMBuilderScript(VMBuilder):
    def setup(self):
        print("OVA", self.vm_data["ova_details"]["name"])

    def create(self):
        return "<domain/>"

    def prepare(self):
        from daemon_lib.vmbuilder import open_zk
        from pvcworkerd.Daemon import config
        import daemon_lib.ceph as pvc_ceph

        for disk in self.vm_data["volumes"]:
            name = f"{self.vm_name}_{disk['disk_id']}"
            with open_zk(config) as zk:
                print("ADD", *pvc_ceph.add_volume(zk, disk["pool"], name, f"{disk['disk_size_gb']}G"))
                print("MAP", *pvc_ceph.map_volume(zk, disk["pool"], name))
                print("MAP", *pvc_ceph.map_volume(zk, disk["pool"], disk["volume_name"]))
                print("MAP", pvc_ceph.map_volume(zk, disk["pool"], "image_8_sda")[0])
            self.source = f"/dev/rbd/{disk['pool']}/{disk['volume_name']}"
            self.target = f"/dev/rbd/{disk['pool']}/{name}"

    def install(self):
        import daemon_lib.common as pvc_common

        print("WRITE", pvc_common.run_os_command(f"dd if=/dev/zero of={self.source} count=1")[0] == 0)
        code, out, err = pvc_common.run_os_command(
            f"qemu-img convert -C -f raw -O raw {self.source} {self.target}"
        )
        print("CONVERT", code, err)

    def cleanup(self):
        from daemon_lib.vmbuilder import open_zk
        from pvcworkerd.Daemon import config
        import daemon_lib.ceph as pvc_ceph

        for disk in self.vm_data["volumes"]:
            with open_zk(config) as zk:
                print("UNMAP", pvc_ceph.unmap_volume(zk, disk["pool"], disk["volume_name"])[0])
                name = f"{self.vm_name}_{disk['disk_id']}"
                print("UNMAP", pvc_ceph.unmap_volume(zk, disk["pool"], name)[0])
"""


def test_old_script_for_ovas_copies_the_disks_of_the_image(pool: DirectoryPool) -> None:
    content = b"disk of an appliance".ljust(MIB, b".")
    pool.import_stream("image_7_sda", io.BytesIO(content), MIB)
    pool.create_snapshot("image_7_sda", "base")
    pool.protect_snapshot("image_7_sda", "base")
    disk = volume("sda", size_bytes=MIB, source_volume="image_7_sda", source_snapshot="base")
    frozen = {
        "vm": {"name": "web1", "id": 1, "uuid": PLAN["vm_uuid"]},
        "profile": "appliance",
        "image": {"id": 7, "name": "appliance", "kind": "ova", "node": None, "hardware": None},
        "script": {"source": OVA_SCRIPT, "declaration": {"api_version": None}},
        "argument_texts": {},
        "arguments": {},
        "userdata": None,
        "system": {"vcpu_count": 1, "vram_mb": 512},
        "mac_template": None,
        "networks": [],
        "volumes": [disk],
        "domain": {**PLAN["domain"], "architecture": "x86_64"},
    }
    build = SandboxedBuild(pool, {**PLAN, **script_context(frozen, {})})
    build.run(OVA_SCRIPT)
    printed = [line for line in build.log.lines if line[0].isupper()]
    assert printed == [
        "OVA appliance",
        'ADD True Created RBD volume "web1_sda" of size "1G" in pool "vms".',
        "MAP True /dev/rbd/vms/web1_sda",
        "MAP True /dev/rbd/vms/image_7_sda",
        "MAP False",
        "WRITE False",
        "CONVERT 0 ",
        "UNMAP True",
        "UNMAP True",
    ]
    assert b"".join(pool.export_stream("web1_sda")) == content
    assert b"".join(pool.export_stream("image_7_sda")) == content
