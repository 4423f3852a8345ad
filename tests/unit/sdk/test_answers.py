"""Answers for installers: templates, and the CD-ROM they are on."""

import json
import subprocess
from pathlib import Path

import pytest
from worker_end import context

from vmbuilder import answers, cdrom
from vmbuilder.context import Context
from vmbuilder.errors import ValidationError

VALUES = {"host_name": "web1", "macs": "", "user": None}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("host @{host_name}, @{host_name}", "host web1, web1"),
        ("$6$salt$hash ${var} $(date) `date` %pre \\n @core me@example.org {x}", None),
        ("'@@{host_name}' @@@{host_name}", "'@{host_name}' @@{host_name}"),
        ("[@{macs}]", "[]"),
        ("", ""),
    ],
)
def test_only_names_are_replaced(template: str, text: str | None) -> None:
    assert answers.render(template, VALUES) == (template if text is None else text)


def test_values_are_not_templates() -> None:
    assert answers.render("@{host_name}", {"host_name": "@{uuid}\\1"}) == "@{uuid}\\1"


def test_all_wrong_names_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        answers.render("@{host_name}\n@{hostname} @{user}\n@{ host_name}\n@{host_name\n@{", VALUES)
    for problem in (
        "line 2: @{hostname} is unknown",
        "line 2: @{user} has no value",
        "line 3: @{ host_name} is unknown",
        "line 4: @{host_name is unknown",
        "line 5: @{ is unknown",
        "(names: host_name, macs, user)",
    ):
        assert problem in str(caught.value)


def test_values_of_the_plan() -> None:
    document = context()
    assert answers.plan_values(Context.from_json(document)) == {
        "host_name": "web1",
        "uuid": document["vm_uuid"],
        "profile": "debian12",
        "mac": "52:54:01:00:01:00",
        "macs": "52:54:01:00:01:00",
        "disk": "sda",
        "disks": "sda sdb",
    }
    bare = answers.plan_values(Context.from_json(context(volumes=[], networks=[])))
    assert (bare["mac"], bare["disk"], bare["disks"]) == (None, None, "")


def test_cloud_init_gets_the_identity_beside_its_document() -> None:
    of = Context.from_json(context())
    files = answers.files_of(answers.FORMATS["cloud-init"], "#cloud-config\n", of)
    assert files["user-data"] == "#cloud-config\n"
    assert json.loads(files["meta-data"]) == {"instance-id": str(of.vm_uuid), "local-hostname": "web1"}
    assert answers.files_of(answers.FORMATS["kickstart"], "text\n", of) == {"ks.cfg": "text\n"}
    with pytest.raises(ValidationError, match="more than"):
        answers.files_of(answers.FORMATS["preseed"], "x" * 2**20 + "x", of)


@pytest.mark.parametrize("name", answers.FORMATS)
def test_cdrom_has_the_label_and_the_file_the_installer_looks_for(name: str, tmp_path: Path) -> None:
    form = answers.FORMATS[name]
    image = cdrom.write_image(tmp_path, form.label, {form.file: "the answers\n"})
    data = image.read_bytes()
    assert data[16 * 2048 + 1 : 16 * 2048 + 6] == b"CD001"
    assert data[16 * 2048 + 40 : 16 * 2048 + 72].decode().rstrip() == form.label
    words = ["xorriso", "-indev", image, "-osirrox", "on", "-extract", f"/{form.file}", tmp_path / "read"]
    subprocess.run(words, check=True, capture_output=True)
    assert (tmp_path / "read").read_text() == "the answers\n"
