"""The builder iso up to what it asks the cluster for; installing is for the system tests."""

import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from worker_end import BUILDERS, WorkerEnd, volume

from pvccommon.declarations import read_declaration, type_arguments

PAGE = BUILDERS.parents[1] / "docs" / "builders" / "iso.md"
SOURCE = (BUILDERS / "iso.py").read_text()
MEDIUM = {"pool": "vms", "volume": "image_7_iso", "disk_id": "sdz", "size_bytes": 2**20, "temporary": False}
ANSWERS = {"pool": "vms", "volume": "web1_answers", "disk_id": "sdy", "size_bytes": 2**22, "temporary": True}
# The builder, telling what it would write.
SHOW_ANSWERS = (
    SOURCE
    + """
    def setup(self, original=setup):
        original(self)
        self.fail(self.files[self.format.file])
"""
)
TEMPLATE = "answer_template=@{host_name}"


def typed(*texts: str) -> dict[str, Any]:
    values, _, problems = type_arguments(read_declaration(SOURCE), texts)
    assert not problems, problems
    return values


def outcome(*texts: str, **changes: Any) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Set-up and preparation of the builder: why it failed, if so, and what it asked the cluster for."""
    with WorkerEnd(lambda verb, args: {"node": "/nonexistent/device"}) as worker:
        document = {"cdroms": [MEDIUM, ANSWERS], "arguments": typed(*texts), **changes}
        assert worker.load(SOURCE, **document)["type"] == "done"
        for stage in ("setup", "prepare"):
            reply = worker.stage(stage)
            if reply["type"] != "done":
                return reply["error"]["message"], worker.requests
        return "", worker.requests


def test_declares_the_cdrom_for_its_answers() -> None:
    assert read_declaration(SOURCE).answers_mib == 4


@pytest.mark.parametrize(
    ("texts", "changes", "why"),
    [
        ([], {"cdroms": [ANSWERS]}, "the profile has no image of kind iso"),
        ([], {"volumes": []}, "no blank disk"),
        ([], {"volumes": [volume("sda", source_volume="gold_sda")]}, "no blank disk"),
        ([TEMPLATE], {}, "but answers=none"),
        ([], {"userdata": "#cloud-config\n"}, "but answers=none"),
        (["answers=kickstart"], {}, "answers need a template"),
        (
            ["answers=kickstart", "answer_template=@{user} @{no}"],
            {},
            "@{user} has no value; line 1: @{no} is",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    texts: list[str], changes: dict[str, Any], why: str
) -> None:
    message, requests = outcome(*texts, **changes)
    assert why in message and requests == []


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [([], None), (["wait=true"], 3600), (["wait=true", "timeout_minutes=2"], 120), (["wait=false"], None)],
)
def test_build_waits_when_it_is_told_to(texts: list[str], seconds: int | None) -> None:
    message, requests = outcome(*texts)
    verbs = [verb for verb, _ in requests]
    assert (message, verbs[:2]) == ("", ["volume.create", "volume.create"])
    waits = [args for verb, args in requests if verb == "domain.first_boot"]
    assert waits == ([] if seconds is None else [{"until": "poweroff", "timeout_s": seconds}])


def test_answers_are_written_to_the_cdrom_and_given_back_when_that_fails() -> None:
    message, requests = outcome("answers=preseed", TEMPLATE)
    assert "/nonexistent/device" in message
    verbs = [(verb, args["volume"]) for verb, args in requests if args["volume"] == "web1_answers"]
    assert verbs == [(f"volume.{verb}", "web1_answers") for verb in ("create", "map", "unmap")]


def test_user_s_own_names_and_keys_are_in_the_answers(tmp_path: Any) -> None:
    key = "ssh-ed25519 AAAA+/= me@example.org"
    template = "@{address}|@{ssh_key}|@{ssh_keys_json}|@{locale}|@{root_password_hash}"
    texts = ["answers=kickstart", f"answer_template={template}", f"ssh_keys={key}"]
    own = ["values=address=10.0.0.1/24", "root_password_hash=$6$x$y"]
    device = tmp_path / "device"
    device.write_bytes(b"\0" * 2**22)
    with WorkerEnd(lambda verb, args: {"node": str(device)} if verb == "volume.map" else {}) as worker:
        worker.load(SOURCE, cdroms=[MEDIUM, ANSWERS], arguments=typed(*texts, *own))
        for stage in ("setup", "prepare"):
            assert worker.stage(stage)["type"] == "done"
    expected = f'10.0.0.1/24|{key}|["{key}"]|C.UTF-8|$6$x$y'
    assert expected.encode() in device.read_bytes()


@pytest.mark.parametrize(
    "text", ["ssh_keys=ssh-rsa AAAA $(x)", "values=A=b", "values=x", 'user=a"b', "timeout_minutes=0"]
)
def test_values_that_could_break_out_of_a_template_are_refused(text: str) -> None:
    assert type_arguments(read_declaration(SOURCE), [text])[2]


def test_old_hardware_and_the_cdroms_bus() -> None:
    with WorkerEnd() as worker:
        worker.load(SOURCE, cdroms=[MEDIUM], arguments=typed("virtio=false"))
        xml = worker.stage("create")["result"]["domain_xml"]
    assert 'dev="sda" bus="sata"' in xml and 'model type="e1000e"' in xml
    with WorkerEnd() as worker:
        worker.load(SOURCE, cdroms=[MEDIUM], arguments=typed("cdrom_bus=scsi"))
        assert 'dev="sdz" bus="scsi"' in worker.stage("create")["result"]["domain_xml"]


def templates_of_the_page() -> dict[str, str]:
    """The examples of the builder's page by the installer they are for."""
    section = PAGE.read_text().split("## The template")[1].split("\n## ")[0]
    found = re.findall(r"^For (\w+).*:\n\n((?:    .*\n)+)", section, re.MULTILINE)
    return {name: textwrap.dedent(text) for name, text in found}


def test_templates_of_the_page_are_what_their_installers_read(tmp_path: Path) -> None:
    texts = ["user=ops", "ssh_keys=ssh-ed25519 AAAA me@here", "root_password_hash=$6$salt$ha/sh."]
    with WorkerEnd() as worker:
        rendered = {}
        for name, template in templates_of_the_page().items():
            kind = {"Anaconda": "kickstart", "Ubuntu": "autoinstall", "Debian": "preseed"}[name]
            arguments = typed(*texts, f"answers={kind}", f"answer_template={template}")
            worker.load(SHOW_ANSWERS, cdroms=[MEDIUM, ANSWERS], arguments=arguments)
            reply = worker.stage("setup")
            rendered[name] = reply["error"]["message"]
    assert list(rendered) == ["Anaconda", "Ubuntu", "Debian"]
    assert not any("@{" in text for text in rendered.values())
    settings = yaml.safe_load(rendered["Ubuntu"])["autoinstall"]
    assert settings["identity"] == {"hostname": "web1", "username": "ops", "password": "$6$salt$ha/sh."}
    assert settings["ssh"]["authorized-keys"] == ["ssh-ed25519 AAAA me@here"]
    (tmp_path / "preseed.cfg").write_text(rendered["Debian"])
    checked = subprocess.run(
        ["debconf-set-selections", "--checkonly", tmp_path / "preseed.cfg"], capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert 'sshkey --username=root "ssh-ed25519 AAAA me@here"' in rendered["Anaconda"]
