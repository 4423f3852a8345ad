"""`pvc provisioner image`, `ova` and `profile` as users run them, against a real stack."""

import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from appliance import sha256_of
from cluster import NOOP, Cluster
from command_line import client_environment, pvc, run_pvc
from cutting_proxy import cutting_proxy
from hostile_server import Reply, hostile_server
from image_files import ova
from image_uploads import until

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

MIB = 1024**2
SIZE = 40 * MIB
CUTS = 10
DISK = ("--type", "disk", "--format", "raw", "--pool", "vms")
IMAGE = ("provisioner", "image")
PROFILE = ("provisioner", "profile")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk; no two parts of it are alike."""
    path = tmp_path_factory.mktemp("upload") / "disk.raw"
    path.write_bytes(random.Random(9).randbytes(SIZE))
    return path


def shown(cluster: Cluster, name: str) -> dict[str, Any]:
    return dict(json.loads(pvc(cluster, *IMAGE, "show", name, "--json")))


def content_sha256(cluster: Cluster, name: str) -> str:
    """Of the first disk of an image, as the pool has it."""
    volume = shown(cluster, name)["volumes"][0]["volume_name"]
    digest = hashlib.sha256()
    for part in cluster.pool.export_stream(volume):
        digest.update(part)
    return digest.hexdigest()


def no_images(cluster: Cluster) -> bool:
    return json.loads(pvc(cluster, *IMAGE, "list", "--json")) == []


def test_an_image_from_upload_to_removal(cluster: Cluster, file: Path) -> None:
    uploaded = sha256_of(file)
    done = pvc(cluster, *IMAGE, "upload", "golden", str(file), *DISK, "--sha256", uploaded)
    assert 'Image "golden" is ready.' in done
    assert content_sha256(cluster, "golden") == uploaded == shown(cluster, "golden")["sha256"]
    taken = run_pvc(cluster, *IMAGE, "upload", "golden", str(file), *DISK)
    assert (taken.returncode != 0, "golden" in taken.stderr) == (True, True), taken.stderr
    pvc(cluster, *IMAGE, "rename", "golden", "bookworm")
    cluster.make_profile("parts", NOOP.read_text())  # for its templates and script
    parts = cluster.get(f"{'/'.join(('', *PROFILE))}/parts")[0]
    named = ("-s", parts["system_template"], "-n", parts["network_template"], "-t", parts["storage_template"])
    pvc(cluster, *PROFILE, "add", "of-image", *named, "-x", "parts", "--image", "bookworm")
    [profile] = json.loads(pvc(cluster, *PROFILE, "list", "of-image", "--json"))
    assert profile["image"] == "bookworm"
    [listed] = json.loads(pvc(cluster, *IMAGE, "list", "--json"))
    assert (listed["name"], listed["used_by"]["profiles"]) == ("bookworm", ["of-image"])
    assert "bookworm" in pvc(cluster, *IMAGE, "list") and uploaded in pvc(cluster, *IMAGE, "show", "bookworm")
    refused = run_pvc(cluster, *IMAGE, "delete", "bookworm", "--yes")
    assert refused.returncode != 0 and "of-image" in refused.stderr, refused.stderr
    pvc(cluster, *PROFILE, "remove", "of-image", "--yes")
    pvc(cluster, *IMAGE, "delete", "bookworm", "--yes")
    assert no_images(cluster)


def test_wrong_sums_and_formats_leave_nothing(cluster: Cluster, file: Path) -> None:
    for options, words in (
        ((*DISK, "--sha256", "0" * 64), "SHA-256"),
        (("--type", "disk", "--format", "vmdk", "--pool", "vms"), "VMDK"),
        (("--type", "ova", "--pool", "vms"), "tar archive"),
    ):
        done = run_pvc(cluster, *IMAGE, "upload", "bad1", str(file), *options)
        assert done.returncode != 0 and words in done.stderr, done.stderr
        run_pvc(cluster, *IMAGE, "delete", "bad1", "--yes")
    assert no_images(cluster)


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Silence."""


def test_an_image_that_a_node_fetches(cluster: Cluster, file: Path) -> None:
    with web_server(file.parent) as url:
        place = (f"{url}/{file.name}", *DISK)
        right, wrong = ("--sha256", sha256_of(file)), ("--sha256", "1" * 64)
        assert "is ready" in pvc(cluster, *IMAGE, "import", "fetched", *place, *right)
        failed = run_pvc(cluster, *IMAGE, "import", "other", *place, *wrong)
        missing = run_pvc(cluster, *IMAGE, "import", "missing", f"{url}/nothing", *DISK, *right)
        unsure = run_pvc(cluster, *IMAGE, "import", "unsure", *place)
    assert content_sha256(cluster, "fetched") == sha256_of(file)
    assert shown(cluster, "fetched")["source"] == place[0]
    for done, words in ((failed, "SHA-256"), (missing, "404"), (unsure, "--sha256 must be given")):
        assert done.returncode != 0 and words in done.stderr, done.stderr
    assert {image["name"]: image["state"] for image in cluster.get("/provisioner/image")} == {
        "fetched": "ready",
        "other": "failed",
        "missing": "failed",
    }
    for name in ("fetched", "other", "missing"):
        pvc(cluster, *IMAGE, "delete", name, "--yes")


def test_an_ova_from_plan_to_removal(cluster: Cluster, tmp_path: Path) -> None:
    cluster.ensure("/provisioner/script", "ova", data=NOOP.with_name("ova.py").read_text())
    archive = tmp_path / "web.ova"
    archive.write_bytes(ova(tmp_path, random.Random(3).randbytes(MIB)))
    plan = pvc(cluster, "provisioner", "ova", "upload", "web", str(archive), "--plan")
    for words in ("768", "disk1.vmdk", "sda on scsi", "sdb on scsi"):
        assert words in plan
    assert no_images(cluster)
    pvc(cluster, "provisioner", "ova", "upload", "web", str(archive), "--pool", "vms")
    [listed] = json.loads(pvc(cluster, "provisioner", "ova", "list", "--json"))
    assert [volume["disk_id"] for volume in listed["volumes"]] == ["sda", "sdb"]
    pvc(cluster, *PROFILE, "add", "mine", "-p", "ova", "-s", "web", "-x", "ova", "--ova", "web")
    for name in ("web", "mine"):
        [profile] = json.loads(pvc(cluster, *PROFILE, "list", f"^{name}$", "--json"))
        assert (profile["type"], profile["ova"]) == ("ova", "web")
    refused = run_pvc(cluster, "provisioner", "ova", "remove", "web", "--yes")
    assert refused.returncode != 0 and "used by profile mine" in refused.stderr, refused.stderr
    pvc(cluster, *PROFILE, "remove", "mine", "--yes")
    pvc(cluster, "provisioner", "ova", "remove", "web", "--yes")
    assert cluster.request("GET", "/provisioner/template/system/web").status_code == 404
    assert no_images(cluster)


@pytest.mark.parametrize("seed", [1])
def test_an_upload_cut_at_ten_places_arrives_whole(cluster: Cluster, file: Path, seed: int) -> None:
    places = random.Random(seed).sample(range(MIB // 2, SIZE), CUTS)
    with cutting_proxy(cluster.environment["PVC_API_URL"], places) as proxy:
        through = {"PVC_API_URL": proxy.url}
        done = run_pvc(cluster, *IMAGE, "upload", "cut", str(file), *DISK, environment=through, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert (proxy.breaks, proxy.cuts) == (CUTS, [])
    assert content_sha256(cluster, "cut") == sha256_of(file)
    pvc(cluster, *IMAGE, "delete", "cut", "--yes")


def test_a_killed_client_s_upload_goes_on_by_the_same_command(cluster: Cluster, file: Path) -> None:
    words = ["pvc", *IMAGE, "upload", "again", str(file), *DISK]
    with cutting_proxy(cluster.environment["PVC_API_URL"], hold_at=SIZE // 2) as proxy:
        through = {"PVC_API_URL": proxy.url}
        environment = client_environment(cluster, through)
        with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as first:
            assert proxy.held.wait(60)
            first.kill()
        proxy.go_on.set()
        done = run_pvc(cluster, *words[1:], environment=through)
    assert done.returncode == 0 and "continuing the earlier upload at" in done.stderr, done.stderr
    assert content_sha256(cluster, "again") == sha256_of(file)
    pvc(cluster, *IMAGE, "delete", "again", "--yes")


@pytest.mark.parametrize("fault", ["restarted", "killed"])
def test_an_upload_whose_node_daemon_is_restarted_begins_anew(
    cluster: Cluster, file: Path, fault: str
) -> None:
    words = ["pvc", *IMAGE, "upload", "anew", str(file), *DISK]
    with cutting_proxy(cluster.environment["PVC_API_URL"], hold_at=SIZE // 2) as proxy:
        environment = client_environment(cluster, {"PVC_API_URL": proxy.url})
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as upload:
            assert proxy.held.wait(60)
            end_node_daemon(cluster, fault)
            proxy.go_on.set()
            _, said = upload.communicate(timeout=180)
    assert upload.returncode == 0 and "starting over" in said, said
    assert content_sha256(cluster, "anew") == sha256_of(file)
    pvc(cluster, *IMAGE, "delete", "anew", "--yes")


@pytest.mark.parametrize("fault", ["restarted", "killed"])
def test_a_fetch_whose_node_daemon_is_restarted_says_so(cluster: Cluster, fault: str) -> None:
    with hostile_server() as server:
        server.reply = lambda url: Reply.endless(SIZE)
        words = [server.url, *DISK, "--sha256", "0" * 64]
        pvc(cluster, *IMAGE, "import", "fetched", *words, "--no-wait")
        end_node_daemon(cluster, fault)
        until(lambda: shown(cluster, "fetched")["state"] != "importing", "it is still imported")
    image = shown(cluster, "fetched")
    assert (image["state"], image["volumes"]) == ("failed", [])
    assert image["error"]["why"] == "the node daemon was restarted while it was imported"
    pvc(cluster, *IMAGE, "delete", "fetched", "--yes")
    assert no_images(cluster)


def end_node_daemon(cluster: Cluster, fault: str) -> None:
    if fault == "killed":
        os.kill(cluster.find_process("pvcnoded.main serve"), signal.SIGKILL)
        cluster.stack.up()
    else:
        cluster.stack.restart(["node"])
