"""Images, OVAs and their profiles: what is sent and shown; previews of local archives."""

import io
import json
import os
import random
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import FakeApi, Steps

import pvc.image_wait
from pvc.errors import EXIT_CODES

DIGEST = "ab" * 32
IMAGE = {
    "name": "deb",
    "kind": "ova",
    "state": "importing",
    "percent": 41.6,
    "pool": "vms",
    "node": "hv1",
    "format": "ova",
    "source": "upload",
    "size_bytes": 3 << 30,
    "sha256": DIGEST,
    "created": "2025-01-01T00:00:00Z",
    "finished": None,
    "error": None,
    "warnings": ["no manifest"],
    "verified": {"disk1.vmdk": "sha256"},
    "hardware": {
        "vcpus": 2,
        "memory_mib": 1024,
        "firmware": "uefi",
        "disks": [{"disk_id": "sda", "bus": "scsi"}],
        "nics": [{"network": "VM Network", "model": "virtio", "mac": None}],
    },
    "volumes": [
        {
            "pool": "vms",
            "volume_name": "deb_sda",
            "volume_format": "raw",
            "disk_id": "sda",
            "disk_size_gb": 8,
            "size_bytes": 8 << 30,
        }
    ],
    "used_by": {"profiles": ["web"], "vms": ["web1"]},
}
READY = {**IMAGE, "state": "ready", "percent": 100}
IMPORT = ("provisioner", "image", "import", "deb", "https://mirror.test/a.qcow2", "--type", "disk")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pvc.image_wait, "POLL_S", 0.0)


def run(pvc_run: Any, line: str, *more: str) -> Any:
    return pvc_run("provisioner", *line.split(), *more)


def test_a_list_of_images(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /provisioner/image"] = [IMAGE]
    shown = run(pvc_run, "image list ^d").out
    assert api.asked[-1].query == {"limit": ["^d"]}
    for text in ("deb", "ova", "importing 42 %", "vms", "hv1", "3 GiB", "web, web1"):
        assert text in shown
    assert run(pvc_run, "image list -f raw").out == "deb\n"
    assert json.loads(run(pvc_run, "image list --json").out) == [IMAGE]


def test_no_images(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /provisioner/image"] = ({"message": "nothing"}, 404)
    assert (run(pvc_run, "image list").code, run(pvc_run, "image list").err) == (0, "no images\n")


def test_an_image_in_detail(api: FakeApi, pvc_run: Any) -> None:
    error = {"kind": "wrong-input", "what": "it is\x1b[31m bad", "why": "cut off", "hint": "again"}
    api.answers["GET /provisioner/image/deb"] = [{**IMAGE, "error": error}]
    shown = run(pvc_run, "image show deb").out
    for text in ("it is bad: cut off", "hint: again", "no manifest", "disk1.vmdk=sha256", "1024", "uefi"):
        assert text in shown
    for text in ("sda on scsi", "VM Network (virtio)", "vms/deb_sda", "8 GiB", DIGEST):
        assert text in shown
    assert json.loads(run(pvc_run, "image show deb --json").out)["name"] == "deb"
    assert run(pvc_run, "image show none").code == EXIT_CODES["not-found"]


def test_a_new_image_that_is_not_known_yet_is_shown(api: FakeApi, pvc_run: Any) -> None:
    empty = dict.fromkeys(IMAGE) | {"name": "deb", "kind": "iso", "state": "importing"}
    api.answers["GET /provisioner/image/deb"] = [empty]
    api.answers["GET /provisioner/image"] = [empty]
    assert run(pvc_run, "image show deb").code == run(pvc_run, "image list").code == 0


def test_rename_and_delete(api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["PUT /provisioner/image/deb"] = {"message": "Renamed."}
    api.answers["DELETE /provisioner/image/deb"] = {"message": "Deleted."}
    assert run(pvc_run, "image rename deb new").out == "Renamed.\n"
    assert (api.asked[-1].query, api.asked[-1].form) == ({"new_name": ["new"]}, {})
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert run(pvc_run, "image delete deb").code == EXIT_CODES["declined"]
    assert run(pvc_run, "image delete deb -y").out == "Deleted.\n"


# ---- import


def test_an_import_is_waited_for(api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvc.image_wait.LINE_EVERY_S", 0.0)
    api.answers["POST /provisioner/image/deb/import"] = ({"message": "Accepted.", "image": "deb"}, 202)
    api.answers["GET /provisioner/image/deb"] = Steps(
        [IMAGE], ({"message": "away", "kind": "busy-retry"}, 500), [READY]
    )
    result = pvc_run(*IMPORT, "--format", "qcow2", "-p", "vms", "--node", "hv1", "--sha256", DIGEST)
    assert (result.code, result.out) == (0, 'Image "deb" is ready.\n'), result.err
    assert api.asked[0].query == {
        "url": ["https://mirror.test/a.qcow2"],
        "kind": ["disk"],
        "format": ["qcow2"],
        "pool": ["vms"],
        "node": ["hv1"],
        "sha256": [DIGEST],
    }
    assert result.err == "making the image deb: 42 %\nwarning: no manifest\n"


def test_an_import_need_not_be_waited_for(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/image/deb/import"] = ({"message": "Accepted.", "image": "deb"}, 202)
    options = ("--format", "raw", "-p", "vms", "--sha256", DIGEST, "--no-wait")
    assert pvc_run(*IMPORT, *options).out == "Accepted.\n"
    assert json.loads(pvc_run(*IMPORT, *options, "--json").out)["image"] == "deb"
    assert len(api.asked) == 2


def test_an_import_that_fails_or_is_ended(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/image/deb/import"] = ({"message": "Accepted.", "image": "deb"}, 202)
    error = {"kind": "environment", "what": "the server sent another file"}
    api.answers["GET /provisioner/image/deb"] = [{**IMAGE, "state": "failed", "error": error}]
    options = ("--format", "raw", "-p", "vms", "--sha256", DIGEST)
    result = pvc_run(*IMPORT, *options)
    assert result.code == EXIT_CODES["environment"]
    assert "the image deb could not be made: the server sent another file" in result.err
    del api.answers["GET /provisioner/image/deb"]
    assert pvc_run(*IMPORT, *options).code == EXIT_CODES["not-found"]


# ---- what is refused before anything is sent


REFUSED = [
    ("image upload x a.qcow2 --type disk -p vms", "--format: must be given", "could be `--format qcow2`"),
    ("image upload x a.IMG --type disk -p vms", "--format: must be given", "could be `--format raw`"),
    ("image upload x a --type disk -p vms", "must be given for a disk: raw, qcow2, vmdk", ""),
    ("image upload x a --type iso --format raw -p vms", "--format: raw is none of type iso (iso)", ""),
    ("image upload x a --type iso", "--pool: must be given", ""),
    ("image upload x a --type iso -p vms --sha256 abc", "--sha256: must be 64 hexadecimal digits", ""),
    ("image upload x a --type iso -p vms --system 1", "--system: is for type ova only", ""),
    ("image upload x a --type iso --plan", "only an OVA describes a machine", "--type ova"),
    ("image upload x none --type iso -p vms", "cannot read none", ""),
]


@pytest.mark.parametrize(("line", "error", "hint"), REFUSED)
def test_refused_before_anything_is_sent(
    api: FakeApi, pvc_run: Any, line: str, error: str, hint: str
) -> None:
    result = run(pvc_run, line)
    assert result.code == EXIT_CODES["wrong-input"]
    assert error in result.err
    assert hint in result.err
    assert ("hint:" in result.err) == bool(hint)
    assert api.asked == []


def test_all_problems_at_once(api: FakeApi, pvc_run: Any) -> None:
    assert "3 problems" in run(pvc_run, "image upload x a.vdi --type disk --sha256 1").err
    without_digest = pvc_run(*IMPORT, "--format", "raw", "-p", "vms")
    assert without_digest.code == EXIT_CODES["wrong-input"]
    assert api.asked == []


# ---- the preview


PLAN = {
    "systems": [{"id": "vm1", "name": "first"}, {"id": "vm2", "name": "second"}],
    "hardware": {
        "vcpus": 2,
        "memory_mib": 2048,
        "serial": False,
        "vnc": True,
        "disks": [{"disk_id": "sda", "bus": "sata"}],
    },
    "firmware": "uefi",
    "disks": [{"disk_id": "sda", "size_bytes": 8 << 30, "file": "d\x1b[31misk.vmdk", "format": "vmdk"}],
    "nics": [{"network": "VM Network", "model": "e1000", "mac": "52:54:00:00:00:01"}],
    "warnings": ["secure boot is left out"],
}


def archive(
    path: Path, *members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.USTAR_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def plan(pvc_run: Any, path: Path, *options: str) -> Any:
    return pvc_run("provisioner", "image", "upload", "x", str(path), "--type", "ova", "--plan", *options)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_plan_of_an_archive(api: FakeApi, pvc_run: Any, tmp_path: Path, form: int) -> None:
    api.answers["POST /provisioner/image/plan"] = PLAN
    document = "<Envelope>ä</Envelope>" + " " * 2000
    name = "x" * 120 + ".ovf"
    path = archive(
        tmp_path / "a.ova",
        ("x.ovf" if form == tarfile.USTAR_FORMAT else name, document.encode()),
        ("disk.vmdk", os.urandom(100_000)),
        form=form,
    )
    result = plan(pvc_run, path, "--system", "vm2")
    assert result.code == 0, result.err
    (asked,) = api.asked
    assert asked.form == {"data": [document], "system": ["vm2"]}
    for text in ("2048", "uefi", "sda on sata", "disk.vmdk", "8 GiB", "VM Network", "e1000", "vm2", "second"):
        assert text in result.out
    assert "\x1b" not in result.out
    assert result.err == "warning: secure boot is left out\n"
    assert json.loads(plan(pvc_run, path, "--json").out) == PLAN
    assert not (tmp_path / "client").exists()


def test_the_servers_problems_with_a_document_are_shown(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    problems = [{"path": "disks[0]", "message": "has no file"}, {"path": "", "message": "bad"}]
    api.answers["POST /provisioner/image/plan"] = ({"message": "no", "problems": problems}, 400)
    result = plan(pvc_run, archive(tmp_path / "a.ova", ("x.ovf", b"<x/>")))
    assert result.code == EXIT_CODES["wrong-input"]
    assert "disks[0]: has no file" in result.err


def special(kind: bytes, name: str = "x.ovf") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


def header(**changes: Any) -> bytes:
    """One header block, with what tarfile itself would not write."""
    info = tarfile.TarInfo("x.ovf")
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def long_header(kind: bytes, size: int, content: bytes = b"") -> bytes:
    return header(name="h", type=kind, size=size) + content.ljust(-(-len(content) // 512) * 512, b"\0")


HOSTILE = {
    "empty": b"",
    "zeros": bytes(10240),
    "no archive": b"MZ" + bytes(5000),
    "gzip": b"\x1f\x8b\x08" + bytes(2000),
    "random": random.Random(1).randbytes(8192),
    "cut off in the header": header(size=10)[:300],
    "cut off in the document": header(size=5000) + b"<x>",
    "document of 1 TiB": header(size=1 << 40),
    "negative size": header(size=-512),
    "empty document": header(size=0) + bytes(1024),
    "symbolic link": header(type=tarfile.SYMTYPE, linkname="/etc/shadow"),
    "hard link": header(type=tarfile.LNKTYPE, linkname="/etc/shadow"),
    "device": header(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": header(type=tarfile.FIFOTYPE),
    "folder": header(name="x.ovf/", type=tarfile.DIRTYPE),
    "disk first": header(name="disk.vmdk", size=512) + bytes(1024),
    "long name of 1 TiB": long_header(b"L", 1 << 40, b"x" * 20_000),
    "pax header of 1 TiB": long_header(b"x", 1 << 40, b"1" * 20_000),
    "global pax headers without end": long_header(b"g", 512, b"12 path=abc\n") * 100,
    "pax header of digits": long_header(b"x", 15_000, b"1" * 15_000) + header(size=1),
    "pax number of digits": long_header(b"x", 6000, b"6000 size=" + b"9" * 5989 + b"\n") + header(size=1),
    "pax length 0": long_header(b"x", 10, b"0 path=ab\n") + header(size=1),
    "sparse": header(type=tarfile.GNUTYPE_SPARSE, size=10) + bytes(1024),
    "sparse by pax": long_header(
        b"x", 66, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n22 GNU.sparse.size=99\n"
    )
    + header(size=512)
    + b"9" * 512,
    "control characters": header(name="x\x1b]0;y\x07.txt", size=1) + bytes(1024),
    "document that is no text": header(size=4) + b"\xff\xff\x00\x80" + bytes(1020),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(api: FakeApi, pvc_run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.ova").write_bytes(HOSTILE[name])
    began = time.process_time()
    result = plan(pvc_run, tmp_path / "a.ova")
    assert time.process_time() - began < 5
    assert result.code == EXIT_CODES["wrong-input"], result.err
    assert f"error: cannot read the OVA archive {tmp_path}/a.ova: " in result.err
    assert "\x1b" not in result.err
    assert api.asked == []


def test_random_damage_is_refused_or_read(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    """No exception of tarfile's own gets through."""
    api.answers["POST /provisioner/image/plan"] = PLAN
    path = archive(tmp_path / "a.ova", ("x" * 150 + ".ovf", b"<x/>"), form=tarfile.PAX_FORMAT)
    whole = path.read_bytes()[:2048]
    dice = random.Random(7)
    codes = set()
    for _ in range(200):
        damaged = bytearray(whole)
        for place in dice.sample(range(512, 1100), 3):
            damaged[place] = dice.randrange(256)
        path.write_bytes(damaged)
        codes.add(plan(pvc_run, path).code)
    assert codes == {0, EXIT_CODES["wrong-input"]}


# ---- OVAs of the contract, profiles


def test_an_ova_is_uploaded_in_one_request(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ova"
    path.write_bytes(os.urandom(300_000))
    api.answers["POST /provisioner/ova/web"] = {"message": "Imported."}
    result = pvc_run("provisioner", "ova", "upload", "web", str(path), "-p", "vms")
    assert (result.code, result.out) == (0, "Imported.\n")
    assert api.asked[0].query == {"pool": ["vms"], "ova_size": ["300000"]}
    assert api.asked[0].files["file"].read() == path.read_bytes()
    as_json = pvc_run("provisioner", "ova", "upload", "web", str(path), "-p", "vms", "--json")
    assert json.loads(as_json.out) == {"message": "Imported."}
    assert pvc_run("provisioner", "ova", "upload", "web", str(path)).code == EXIT_CODES["wrong-input"]


def test_the_plan_of_an_ova_needs_no_pool(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    api.answers["POST /provisioner/image/plan"] = PLAN
    path = archive(tmp_path / "a.ova", ("x.ovf", b"<Envelope/>"))
    result = pvc_run("provisioner", "ova", "upload", "web", str(path), "--plan", "--json")
    assert json.loads(result.out) == PLAN, result.err
    assert api.requests_to("POST /provisioner/image/plan") == api.asked


def test_ovas_are_listed_and_removed(api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ova = {"id": 1, "name": "web", "volumes": IMAGE["volumes"]}
    api.answers["GET /provisioner/ova"] = [ova]
    shown = run(pvc_run, "ova list ^w").out
    assert api.asked[-1].query == {"limit": ["^w"]}
    for text in ("web", "sda", "vms", "deb_sda", "raw", "8"):
        assert text in shown
    assert run(pvc_run, "ova list -f raw").out == "web\n"
    api.answers["DELETE /provisioner/ova/web"] = {"message": "Removed."}
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert run(pvc_run, "ova remove web").code == EXIT_CODES["declined"]
    assert run(pvc_run, "ova remove web -y").out == "Removed.\n"


def test_profiles_of_images(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/profile"] = {"message": "Done."}
    assert run(pvc_run, "profile add p -p ova -s s1 -x ova -o web --image deb").code == 0
    assert api.asked[-1].form == {
        "name": ["p"],
        "profile_type": ["ova"],
        "system_template": ["s1"],
        "script": ["ova"],
        "ova": ["web"],
        "image": ["deb"],
    }
    api.answers["PUT /provisioner/profile/p"] = {"message": "Done."}
    assert run(pvc_run, "profile modify p --image deb2").code == 0
    assert api.asked[-1].form == {"image": ["deb2"]}
    api.answers["GET /provisioner/profile"] = [
        {"name": "a", "image": "deb", "ova": "N/A"},
        {"name": "b", "ova": "web", "image": None},
        {"name": "c", "ova": "N/A", "image": "N/A"},
    ]
    shown = run(pvc_run, "profile list").out
    assert "deb" in shown and "web" in shown and "N/A" not in shown
