"""The builder iso: guests that install themselves from a CD-ROM, and the whole life of that CD-ROM.

The images are made on the spot. Most hold a few bytes for the BIOS, which "install" a boot sector: quick,
even under software emulation. One has a real kernel, and an installer that reads its answers.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boot_sectors import HANG, POWER_OFF, REBOOT, SECTOR, boot_sector, installer, make_boot_iso, say
from cluster import NOOP, Cluster
from kernel_iso import make_kernel_iso
from lxml import etree
from scripts import script
from sqlalchemy import select

from pvccommon.errors import Busy
from pvccommon.models import Image, ImageKind, Vm

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

BUILDER = NOOP.with_name("iso.py")
INSTALLED = boot_sector(say(b"installed\r\n"), HANG)
ANSWERS = ("answers=preseed", "answer_template=host @{host_name}", "root_password_hash=$6$salt$verysecret")
VM = "inst1"
# Control sequences, a carriage return, and an end without a new line.
HOSTILE = b"\x1b[2J\x1b]0;evil\x07one\r\n\x1b[31mstep 2\x1b[0m\x00 of 9\r\n"


class IsoImage:
    """The image "iso", made of a program, with a profile of the same name that installs from it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self.volume = ""

    def make(self, program: bytes, builder: str | None = None) -> str:
        """Returns the name of the profile."""
        return self.make_of(make_boot_iso(program, self._directory), builder)

    def make_of(self, file: Path, builder: str | None = None) -> str:
        self._cluster.make_image("iso", ImageKind.ISO, {"iso": file})
        with self._cluster.database.session() as session:
            image = session.execute(select(Image).where(Image.name == "iso")).scalar_one()
            self.volume = image.volumes[0].volume
        self._cluster.make_profile("iso", builder or BUILDER.read_text(), image="iso")
        return "iso"

    def replace(self, program: bytes) -> None:
        """Give the image another content, as if it had always had it."""
        file = make_boot_iso(program, self._directory)
        self._cluster.pool.delete_volume(self.volume)
        with file.open("rb") as stream:
            self._cluster.pool.import_stream(self.volume, stream, file.stat().st_size)

    def remove(self) -> None:
        if self.volume:
            self._cluster.remove_image("iso")


@pytest.fixture
def iso(cluster: Cluster, no_leaks: None, tmp_path: Path) -> Iterator[IsoImage]:
    image = IsoImage(cluster, tmp_path)
    yield image
    image.remove()


def remove(cluster: Cluster, vm: str) -> None:
    cluster.change("DELETE", f"/vm/{vm}", delete_disks=True)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


def console(cluster: Cluster, vm: str) -> str:
    return str(cluster.get(f"/vm/{vm}/console", lines=100)["data"])


def drives(cluster: Cluster, vm: str) -> list[str]:
    """The CD-ROMs in a VM's domain, by their targets."""
    found = etree.fromstring(cluster.domains()[vm]).findall("devices/disk[@device='cdrom']/target")
    return [str(target.get("dev")) for target in found]


def media(cluster: Cluster, vm: str) -> list[str]:
    """The CD-ROMs the VM's row has."""
    with cluster.database.session() as session:
        return [
            cdrom["disk_id"] for cdrom in session.execute(select(Vm.media).where(Vm.name == vm)).scalar_one()
        ]


def has_answers(cluster: Cluster, vm: str) -> bool:
    return cluster.pool.volume_or_none(f"{vm}_answers") is not None


def runs_from_its_disk(cluster: Cluster, vm: str) -> None:
    """The CD-ROMs are gone, and what was installed starts; a reboot is one again."""
    wait_for(lambda: "installed" in console(cluster, vm), "the installed system starts")
    assert (drives(cluster, vm), media(cluster, vm), has_answers(cluster, vm)) == ([], [], False)
    assert etree.fromstring(cluster.domains()[vm]).findtext("on_reboot") == "restart"
    shown = cluster.get(f"/vm/{vm}")[0]
    assert (shown["state"], [disk["dev"] for disk in shown["disks"]]) == ("start", ["sda"])


def start_install(cluster: Cluster, profile: str, *arguments: str) -> str:
    """Start a build, and return when its guest has said something; returns the task's id."""
    task = cluster.create(VM, profile, arg=list(arguments))
    wait_for(lambda: "installing: " in cluster.get(f"/tasks/{task}")["status"], "the guest says something")
    return task


@pytest.mark.parametrize("ending", [POWER_OFF, REBOOT], ids=["powers off", "reboots"])
def test_guest_installs_itself_and_starts_from_its_disk(
    cluster: Cluster, iso: IsoImage, ending: bytes
) -> None:
    profile = iso.make(installer(say(b"installing\r\n"), ending, installs=INSTALLED))
    task = cluster.build(VM, profile, arg=[*ANSWERS])
    log = cluster.log(task["id"])
    assert (task["state"], task["status"]) == ("SUCCESS", f"VM {VM} is running on node hv1"), log
    runs_from_its_disk(cluster, VM)
    assert "verysecret" not in log
    remove(cluster, VM)


def test_installer_with_a_kernel_finds_its_answers_on_the_second_cdrom(
    cluster: Cluster, iso: IsoImage, tmp_path: Path
) -> None:
    profile = iso.make_of(make_kernel_iso(tmp_path))
    answers = ["answers=cloud-init", "answer_template=host_name=@{host_name}\n", "cdrom_bus=scsi"]
    task = cluster.build(VM, profile, arg=answers)
    assert task["state"] == "SUCCESS", cluster.log(task["id"])
    runs_from_its_disk(cluster, VM)
    assert console(cluster, VM).split() == [VM, "installed"], "its disk has the host name of the answers"
    remove(cluster, VM)


def test_installed_vm_that_is_not_to_be_started_is_only_defined(cluster: Cluster, iso: IsoImage) -> None:
    profile = iso.make(installer(POWER_OFF, installs=INSTALLED))
    task = cluster.build(VM, profile, arg=[*ANSWERS], start_vm=False)
    assert (task["state"], task["status"]) == ("SUCCESS", f"VM {VM} is defined on node hv1"), task
    assert (cluster.domain_state(VM), drives(cluster, VM), media(cluster, VM)) == ("shutoff", [], [])
    assert next(cluster.pool.export_stream(f"{VM}_sda"))[:SECTOR] == INSTALLED
    assert not has_answers(cluster, VM)
    remove(cluster, VM)


def test_install_shows_its_console_is_cancelled_and_tried_again(cluster: Cluster, iso: IsoImage) -> None:
    task = start_install(cluster, iso.make(installer(say(HOSTILE), HANG)), *ANSWERS)
    wait_for(lambda: cluster.get(f"/tasks/{task}")["status"] == "installing: step 2 of 9", "the last line")
    assert has_answers(cluster, VM) and sorted(drives(cluster, VM)) == ["sdy", "sdz"]
    assert cluster.request("POST", f"/vm/{VM}/state", state="stop").status_code != 200, "it is the build's"
    started = time.monotonic()
    cluster.change("POST", f"/tasks/{task}/cancel")
    assert cluster.wait(task, timeout_s=20)["build_state"] == "cancelled"
    assert time.monotonic() - started < 5
    assert not has_answers(cluster, VM) and VM not in cluster.domains()
    iso.replace(installer(POWER_OFF, installs=INSTALLED))
    again = cluster.change("POST", f"/tasks/{task}/retry")["task_id"]
    assert cluster.wait(again)["state"] == "SUCCESS", cluster.log(again)
    runs_from_its_disk(cluster, VM)
    remove(cluster, VM)


def test_worker_is_killed_while_the_guest_installs(cluster: Cluster, iso: IsoImage) -> None:
    task = start_install(cluster, iso.make(installer(say(b"begun\r\n"), HANG)), *ANSWERS)
    os.kill(cluster.worker_pid(), signal.SIGKILL)
    ended = cluster.wait(task, timeout_s=60)
    assert ended["build_state"] == "failed" and "was killed" in ended["error"]["why"]


def test_guest_that_does_not_end_or_ends_badly_fails_the_build(cluster: Cluster, iso: IsoImage) -> None:
    """Its time runs out; its QEMU is killed (the machine has no memory left, say); it does nothing."""
    impatient = script(prepare="self.install_from_cdrom(2)")
    profile = iso.make(installer(say(HOSTILE), HANG), impatient)
    ended = cluster.build(VM, profile)
    assert (ended["build_state"], ended["error"]["kind"]) == ("failed", "timeout"), ended
    why = "the guest did not power itself off within 2 s; its console ends with: one / step 2 of 9"
    assert ended["error"]["why"].endswith(why)
    assert "start info step 2 of 9" in cluster.log(ended["id"])

    cluster.make_profile("iso", BUILDER.read_text())
    task = start_install(cluster, profile, *ANSWERS)
    os.kill(cluster.find_process(f"guest={VM},"), signal.SIGKILL)
    assert "QEMU process ended unexpectedly" in cluster.wait(task)["error"]["why"]

    iso.replace(installer(say(b"no disk found\r\n"), POWER_OFF))
    ended = cluster.build(VM, profile, arg=[*ANSWERS])
    assert "written nothing to its disks; its console ends with: no disk found" in ended["error"]["why"]


def test_vm_installed_by_hand_loses_its_cdrom_when_the_guest_ends(cluster: Cluster, iso: IsoImage) -> None:
    """It stays while the VM was never started, and the VM goes on from its disk."""
    profile = iso.make(installer(POWER_OFF, installs=INSTALLED))
    assert cluster.build(VM, profile, start_vm=False)["state"] == "SUCCESS"
    time.sleep(2.5)  # two looks of the node
    assert (drives(cluster, VM), media(cluster, VM), has_answers(cluster, VM)) == (["sdz"], ["sdz"], False)
    cluster.change("POST", f"/vm/{VM}/state", state="start")
    wait_for(lambda: not media(cluster, VM), "the CD-ROM is taken away")
    runs_from_its_disk(cluster, VM)
    remove(cluster, VM)


def test_two_vms_use_one_iso_and_are_stopped_and_removed_with_it(cluster: Cluster, iso: IsoImage) -> None:
    profile = iso.make(installer(say(b"by hand\r\n"), HANG, installs=INSTALLED))
    answered = [*ANSWERS, "wait=false"]
    tasks = [cluster.create(VM, profile, arg=answered), cluster.create("inst2", profile)]
    assert [cluster.wait(task)["state"] for task in tasks] == ["SUCCESS", "SUCCESS"]
    for vm, wanted in ((VM, ["sdy", "sdz"]), ("inst2", ["sdz"])):
        wait_for(lambda vm=vm: "by hand" in console(cluster, vm), "both read the one CD-ROM")
        assert (sorted(drives(cluster, vm)), sorted(media(cluster, vm))) == (wanted, wanted)
        assert [disk["dev"] for disk in cluster.get(f"/vm/{vm}")[0]["disks"]] == ["sda"]
    with pytest.raises(Busy):
        cluster.pool.delete_volume(iso.volume)
    remove(cluster, VM)
    assert not has_answers(cluster, VM)
    cluster.change("POST", "/vm/inst2/state", state="stop")
    wait_for(lambda: not media(cluster, "inst2"), "the CD-ROM is taken away")
    assert cluster.domain_state("inst2") == "shutoff", "it was stopped on purpose"
    cluster.change("POST", "/vm/inst2/state", state="start")
    runs_from_its_disk(cluster, "inst2")
    remove(cluster, "inst2")


def test_what_cannot_be_installed_is_refused(cluster: Cluster, iso: IsoImage) -> None:
    profile = iso.make(installer(HANG))
    for values, why in (
        ({"arg": ["answers=preseed"]}, "answers need a template"),
        ({"arg": ["answers=preseed", "answer_template=@{nobody} @{user}"]}, "line 1: @{nobody} is unknown"),
        ({"arg": [*ANSWERS], "define_vm": False}, "the VM is not to be defined"),
    ):
        ended = cluster.build(VM, profile, **values)
        assert (ended["build_state"], why in ended["error"]["why"]) == ("failed", True), ended["error"]
