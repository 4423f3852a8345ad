"""The example documents for cloud-init are what cloud-init takes, and hold no secret."""

import email
import re
import subprocess
from email.message import Message
from pathlib import Path

import pytest
import yaml

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "provisioner-scripts" / "userdata").iterdir())
# The keys of cloud-init's modules that the examples use; a misspelt key would be ignored silently.
KEYS = {"users", "disable_root", "ssh_pwauth", "package_update", "timezone"}
USER_KEYS = {"name", "gecos", "groups", "shell", "sudo", "lock_passwd", "ssh_authorized_keys"}


def parts(path: Path) -> list[tuple[str, str]]:
    """Kind and text of what cloud-init would make of a document."""
    text = path.read_text()
    if text.startswith("#cloud-config\n"):
        return [("text/cloud-config", text)]
    message = email.message_from_string(text)
    assert message.is_multipart()
    assert not [defect for part in message.walk() for defect in part.defects]
    found: list[tuple[str, str]] = []
    for part in message.get_payload():
        assert isinstance(part, Message)
        found.append((part.get_content_type(), str(part.get_payload())))
    return found


def test_there_is_a_plain_one_and_a_multipart_one() -> None:
    assert {len(parts(path)) > 1 for path in EXAMPLES} == {False, True}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_part_is_of_a_kind_that_cloud_init_knows(path: Path) -> None:
    for kind, text in parts(path):
        if kind == "text/cloud-config":
            assert text.startswith("#cloud-config\n")
            document = yaml.safe_load(text)
            assert set(document) <= KEYS
            assert document["users"]
            for user in document["users"]:
                assert set(user) <= USER_KEYS
                assert user["lock_passwd"] is True
                assert user["ssh_authorized_keys"]
        else:
            assert kind == "text/x-shellscript"
            assert text.startswith("#!/bin/sh\n")
            subprocess.run(["sh", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_no_password_stands_in_an_example(path: Path) -> None:
    assert not re.search(r"passwd: *\S*\$|password:|chpasswd", path.read_text())
