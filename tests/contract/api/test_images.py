"""Images, uploaded and fetched, by real imports of a node with a real pool."""

import functools
import hashlib
import http.server
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_files import OVF, ova

from pvccommon.config import Images
from pvccommon.database import Database
from pvccommon.models import Audit, Image, ImageVolume, Profile, SystemTemplate, Vm
from pvccommon.storage.directory import DirectoryPool
from pvcnoded.imports.dead_imports import undo_imports_of_dead
from pvcnoded.lease import Owner

MIB = 1024**2
IMAGES = "/provisioner/image"
OVAS = "/provisioner/ova"
DATA = random.Random(4).randbytes(MIB) + bytes(4 * MIB) + b"the end" + bytes(505)
BOUNDARY = "b0undary"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()
MULTIPART = {"content_type": f"multipart/form-data; boundary={BOUNDARY}"}


def parameters(pool: str = "vms", **more: Any) -> dict[str, Any]:
    given = {"kind": "disk", "format": "raw", "pool": pool, **more}
    return {key: value for key, value in given.items() if value is not None}


def upload(api: Any, data: bytes = DATA, name: str = "golden", **more: Any) -> Any:
    query = parameters(file_size=len(data)) | more
    return api.post(f"{IMAGES}/{name}", query, data=HEAD + data + TAIL, **MULTIPART)


def show(api: Any, name: str = "golden") -> dict[str, Any]:
    [element] = api.get(f"{IMAGES}/{name}").json
    assert isinstance(element, dict)
    return element


def content(pool: DirectoryPool, volume: str) -> bytes:
    return b"".join(pool.export_stream(volume))


def everything_in(pool: DirectoryPool) -> list[str]:
    frame = ("pool.lock", "volumes", "images")
    return [str(path) for path in pool.path.rglob("*") if path.name not in frame]


def nothing_left(api: Any, pool: DirectoryPool) -> bool:
    return everything_in(pool) == [] and api.get(IMAGES).status_code == 404


def eventually(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# ---- in one request


def test_an_image_is_made_from_a_file(api: Any, pool: DirectoryPool, expect: Any) -> None:
    assert "Made" in expect(upload(api), 200)["message"]
    image = show(api)
    assert (image["state"], image["kind"], image["node"], image["error"]) == ("ready", "disk", "hv1", None)
    assert image["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert (image["size_bytes"], image["percent"], image["source"]) == (len(DATA), None, "upload")
    assert image["used_by"] == {"profiles": [], "vms": []}
    [volume] = image["volumes"]
    assert (volume["disk_id"], volume["disk_size_gb"]) == ("sda", 1)
    assert content(pool, volume["volume_name"]) == DATA
    assert pool.stat_volume(volume["volume_name"]).used_bytes < 2 * MIB
    [snapshot] = pool.list_snapshots(volume["volume_name"])
    assert (snapshot.name, snapshot.protected) == ("base", True)


def test_an_image_is_renamed_and_removed(api: Any, pool: DirectoryPool, expect: Any) -> None:
    expect(upload(api), 200)
    expect(upload(api, name="other"), 200)
    expect(api.put(f"{IMAGES}/golden", {"new_name": "other"}), 400)
    expect(api.put(f"{IMAGES}/golden", {"new_name": "upload"}), 400)
    expect(api.put(f"{IMAGES}/golden", {"new_name": "silver"}), 200)
    assert [image["name"] for image in expect(api.get(IMAGES), 200)] == ["other", "silver"]
    for name in ("silver", "other"):
        expect(api.delete(f"{IMAGES}/{name}"), 200)
    assert nothing_left(api, pool)
    expect(api.delete(f"{IMAGES}/silver"), 400)


def test_what_is_used_stays(
    api: Any, pool: DirectoryPool, database: Database, parts: None, expect: Any
) -> None:
    expect(upload(api), 200)
    templates = {"system_template": "small", "network_template": "lan", "storage_template": "disk"}
    profile = {
        "name": "p",
        "profile_type": "provisioner",
        "script": "maker",
        "image": "golden",
        "arg": "owner=me",
    }
    expect(api.post("/provisioner/profile", {**profile, **templates}), 200)
    assert show(api)["used_by"]["profiles"] == ["p"]
    assert "profile p" in expect(api.delete(f"{IMAGES}/golden"), 400)["message"]
    expect(api.delete("/provisioner/profile/p"), 200)
    volume = show(api)["volumes"][0]["volume_name"]
    pool.clone_snapshot(volume, "base", "web1_sda")
    assert "web1_sda" in expect(api.delete(f"{IMAGES}/golden"), 400)["message"]
    assert show(api)["state"] == "ready"
    pool.delete_volume("web1_sda")
    with database.session() as session:
        media = [{"pool": "vms", "volume": volume, "disk_id": "sdz", "temporary": False}]
        session.add(Vm(name="web1", node="hv1", state="stop", memory_mib=1, vcpus=1, xml="<d/>", media=media))
    assert show(api)["used_by"]["vms"] == ["web1"]
    assert "VM web1" in expect(api.delete(f"{IMAGES}/golden"), 400)["message"]
    with database.session() as session:
        session.query(Vm).delete()
    expect(api.delete(f"{IMAGES}/golden"), 200)
    assert nothing_left(api, pool)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"kind": "floppy"}, "kind"),
        ({"kind": "iso"}, "format"),
        ({"kind": "iso", "format": "iso"}, "ISO 9660"),
        ({"kind": "ova", "format": "ova"}, "tar"),
        ({"format": "vmdk"}, "VMDK"),
        ({"pool": "nothing"}, "pool"),
        ({"node": "hv9"}, "no such node"),
        ({"sha256": "00"}, "sha256"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"system": "web"}, "system"),
        ({"file_size": len(DATA) - 512}, "more than"),
        ({"file_size": len(DATA) + 512}, "bytes came"),
        ({"file_size": 1 << 55}, "limit"),
        ({"colour": "red"}, "colour"),
        ({"name": "plan-"}, None),
        ({"name": "-x"}, "name"),
    ],
)
def test_what_is_refused_leaves_nothing(
    api: Any, pool: DirectoryPool, expect: Any, more: dict[str, Any], word: str | None
) -> None:
    answer = upload(api, **more)
    if word is None:
        expect(answer, 200)
        return
    assert word in expect(answer, 400)["message"]
    eventually(lambda: nothing_left(api, pool))


def test_all_problems_at_once(api: Any, pool: DirectoryPool, expect: Any) -> None:
    answer = expect(upload(api, kind="iso", pool="nothing", sha256="x", file_size="many"), 400)
    assert {problem["path"] for problem in answer["problems"]} == {"format", "pool", "sha256", "file_size"}


def test_names_are_taken_once(api: Any, pool: DirectoryPool, expect: Any) -> None:
    expect(upload(api), 200)
    before = sorted(everything_in(pool))
    assert expect(upload(api), 400)["kind"] == "exists"
    assert sorted(everything_in(pool)) == before


# ---- OVA


@pytest.fixture
def ova_script(parts: None, api: Any, expect: Any) -> None:
    source = api.get("/provisioner/script/maker").json[0]["script"]
    expect(api.post("/provisioner/script", {"name": "ova"}, form={"data": source}), 200)


def post_ova(api: Any, archive: bytes, name: str = "web") -> Any:
    query = {"pool": "vms", "ova_size": len(archive)}
    return api.post(f"{OVAS}/{name}", query, data=HEAD + archive + TAIL, **MULTIPART)


def test_an_ova_brings_a_template_and_a_profile(
    api: Any, pool: DirectoryPool, database: Database, ova_script: None, tmp_path: Path, expect: Any
) -> None:
    expect(api.get(OVAS), 404)
    expect(post_ova(api, ova(tmp_path, DATA)), 200)
    [found] = expect(api.get(OVAS), 200)
    assert [volume["disk_id"] for volume in found["volumes"]] == ["sda", "sdb"]
    assert content(pool, found["volumes"][0]["volume_name"]) == DATA
    assert pool.stat_volume(found["volumes"][1]["volume_name"]).size_bytes == 1024**3
    image = show(api, "web")
    assert image["hardware"]["vcpus"] == 2
    assert image["verified"] == {"x.ovf": "sha256", "disk1.vmdk": "sha256"}
    [profile] = expect(api.get("/provisioner/profile/web"), 200)
    assert (profile["type"], profile["ova"], profile["script"]) == ("ova", "web", "ova")
    [template] = expect(api.get("/provisioner/template/system/web"), 200)
    assert (template["vcpu_count"], template["vram_mb"]) == (2, 768)
    assert expect(post_ova(api, ova(tmp_path, DATA)), 400)
    expect(api.delete(f"{OVAS}/web"), 200)
    assert nothing_left(api, pool)
    with database.session() as session:
        assert session.query(Profile).count() == 0
        assert [row.name for row in session.query(SystemTemplate).all()] == ["small"]


def test_a_bad_ova_leaves_nothing(
    api: Any, pool: DirectoryPool, database: Database, ova_script: None, tmp_path: Path, expect: Any
) -> None:
    answer = expect(post_ova(api, ova(tmp_path, DATA, wrong_digest=True)), 400)
    assert "manifest" in answer["message"]
    assert nothing_left(api, pool)
    with database.session() as session:
        assert session.query(Profile).count() == 0


def test_an_ova_needs_a_script(
    api: Any, pool: DirectoryPool, parts: None, tmp_path: Path, expect: Any
) -> None:
    assert "install-defaults" in expect(post_ova(api, b"x"), 400)["message"]


def test_only_ovas_are_removed_as_such(api: Any, pool: DirectoryPool, expect: Any) -> None:
    expect(upload(api), 200)
    expect(api.delete(f"{OVAS}/golden"), 400)
    expect(api.get(f"{OVAS}/golden"), 404)
    expect(api.get(OVAS), 404)
    assert show(api)["state"] == "ready"


def test_the_plan_of_an_ovf(api: Any, expect: Any) -> None:
    plan = expect(api.post(f"{IMAGES}/plan", form={"data": OVF.format(capacity=MIB)}), 200)
    assert plan["systems"] == [{"id": "web", "name": "web"}]
    assert [(disk["disk_id"], disk["file"], disk["format"]) for disk in plan["disks"]] == [
        ("sda", "disk1.vmdk", "vmdk"),
        ("sdb", None, None),
    ]
    assert plan["hardware"]["memory_mib"] == 768
    assert plan["firmware"] == "bios"
    for document in ("<x/>", "no XML", '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'):
        expect(api.post(f"{IMAGES}/plan", form={"data": document}), 400)
    expect(api.get(IMAGES), 404)


# ---- by URL


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA[:MIB])
            self.rfile.read()  # until the other end goes
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server with the file `disk`."""
    directory = tmp_path / "www"
    directory.mkdir()
    (directory / "disk").write_bytes(DATA)
    handler = functools.partial(Handler, directory=str(directory))
    with Server(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def fetch(api: Any, url: str, **more: Any) -> Any:
    query = parameters(url=url, sha256=hashlib.sha256(DATA).hexdigest()) | more
    return api.post(f"{IMAGES}/golden/import", query)


def ended(api: Any) -> dict[str, Any]:
    eventually(lambda: show(api)["state"] != "importing")
    return show(api)


def test_an_image_is_fetched(api: Any, pool: DirectoryPool, server: str, expect: Any) -> None:
    assert expect(fetch(api, f"{server}/to?{server}/disk"), 202)["image"] == "golden"
    image = ended(api)
    assert (image["state"], image["size_bytes"], image["error"]) == ("ready", len(DATA), None)
    assert content(pool, image["volumes"][0]["volume_name"]) == DATA


@pytest.mark.parametrize(
    ("path", "more", "word"),
    [
        ("/nothing", {}, "404"),
        ("/disk", {"sha256": "0" * 64}, "SHA-256"),
        ("/disk", {"kind": "iso", "format": "iso"}, "ISO 9660"),
        ("/to?file:///etc/passwd", {}, "http"),
        ("/to?http://169.254.169.254/latest", {}, "address"),
        ("/to?http://[::1]/", {}, "address"),
        ("/to?/to?/to?/to?/to?/to?/to?/disk", {}, "redirected"),
    ],
)
def test_a_failed_fetch_leaves_its_error(
    api: Any, pool: DirectoryPool, server: str, expect: Any, path: str, more: dict[str, Any], word: str
) -> None:
    expect(fetch(api, server + path, **more), 202)
    image = ended(api)
    assert image["state"] == "failed"
    assert word in image["error"]["what"] + image["error"]["why"]
    assert image["volumes"] == []
    assert everything_in(pool) == []
    expect(upload(api), 200)  # takes its place
    assert show(api)["state"] == "ready"


def interrupted(api: Any) -> dict[str, Any]:
    """The image, which says that its node daemon was restarted."""
    image = ended(api)
    assert (image["state"], image["volumes"]) == ("failed", [])
    assert image["error"] == {
        "kind": "busy-retry",
        "what": "import image golden",
        "why": "the node daemon was restarted while it was imported",
        "hint": "import it again",
    }
    return image


@pytest.mark.parametrize("later_s", [0.0, 1.0])
def test_a_fetch_that_its_node_daemon_ends_says_so(
    api: Any, pool: DirectoryPool, server: str, expect: Any, answering: Any, later_s: float
) -> None:
    expect(fetch(api, server + "/endless"), 202)
    time.sleep(later_s)
    answering.imports["hv1"].end_all(10)
    interrupted(api)
    assert everything_in(pool) == []
    expect(upload(api), 200)  # takes its place


@pytest.mark.parametrize("source", ["http://example.test/disk", "upload"])
def test_an_import_whose_process_was_killed_says_so_when_it_was_fetched(
    api: Any, pool: DirectoryPool, database: Database, expect: Any, source: str
) -> None:
    pool.create_volume("image_77_a", MIB)
    with database.session() as session:
        dead = {
            "state": "importing",
            "owner": "hv1/boot/1/1",
            "node": "hv1",
            "document": {},
            "source": source,
        }
        image = Image(id=77, name="golden", kind="disk", format="raw", pool="vms", size_bytes=MIB, **dead)
        volume = {"position": 0, "disk_id": "a", "pool": "vms", "volume": "image_77_a", "size_bytes": MIB}
        image.volumes.append(ImageVolume(**volume))
        session.add(image)
    for _ in range(2):
        undo_imports_of_dead(database, {"vms": pool}, Owner.myself("hv1"))
        assert everything_in(pool) == []
    if source == "upload":
        expect(api.get(f"{IMAGES}/golden"), 404)
    else:
        assert interrupted(api)["source"] == source


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "file:///etc/passwd", "http://", "/disk", "http://a:b@x/", "http://x y/"]
)
def test_other_urls_are_refused(api: Any, pool: DirectoryPool, expect: Any, url: str) -> None:
    answer = expect(fetch(api, url), 400)
    assert "url" in {problem["path"] for problem in answer["problems"]}


def test_own_addresses_are_not_fetched_from(
    api: Any, answering: Any, serve_pool: Any, tmp_path: Path, server: str, expect: Any
) -> None:
    answering.image_settings = Images()
    serve_pool("hv1", DirectoryPool("vms", tmp_path / "pool"))
    expect(fetch(api, f"{server}/disk"), 202)
    assert ended(api)["error"]["kind"] == "forbidden"
    expect(api.delete(f"{IMAGES}/golden"), 200)
    expect(api.get(IMAGES), 404)


# ---- who


def test_who_may(caller: Any, pool: DirectoryPool, expect: Any) -> None:
    viewer = caller("viewer")
    expect(upload(viewer), 403)
    expect(viewer.delete(f"{IMAGES}/golden"), 403)
    expect(viewer.get(IMAGES), 404)
    expect(viewer.post(f"{IMAGES}/plan", form={"data": OVF.format(capacity=MIB)}), 200)


def test_changes_are_audited(api: Any, pool: DirectoryPool, database: Database, expect: Any) -> None:
    expect(upload(api), 200)
    expect(api.put(f"{IMAGES}/golden", {"new_name": "silver"}), 200)
    with database.session() as session:
        rows = session.query(Audit).order_by(Audit.id).all()
        assert [(row.method, row.status) for row in rows] == [("POST", 200), ("PUT", 200)]
        assert rows[0].parameters["kind"] == "disk"
        assert session.query(Image).one().name == "silver"
