"""Uploads of images: resumed after whatever happens, ended by Ctrl-C, remembered, in little memory."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_tus_api import TusApi, tus_api

import pvc.image_upload
import pvc.image_wait
from pvc.errors import EXIT_CODES

CLIENT = Path(__file__).resolve().parents[3] / "client-cli"
KIB = 1 << 10
MIB = 1 << 20
READY = 'Image "deb" is ready.\n'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks and no pauses."""
    monkeypatch.setattr(pvc.image_upload, "FIRST_CHUNK_BYTES", 64 * KIB)
    monkeypatch.setattr(pvc.image_upload, "MIN_CHUNK_BYTES", 16 * KIB)
    monkeypatch.setattr(pvc.image_upload, "MAX_CHUNK_BYTES", 256 * KIB)
    monkeypatch.setattr(pvc.image_upload, "PAUSES_S", (0.0,))
    monkeypatch.setattr(pvc.image_upload, "END_PAUSES_S", (0.0,))
    monkeypatch.setattr(pvc.image_wait, "POLL_S", 0.0)


@pytest.fixture
def tus() -> Iterator[TusApi]:
    with tus_api() as api:
        yield api


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    path.write_bytes(random.Random(4).randbytes(2_000_003))
    return path


@pytest.fixture
def upload(tus: TusApi, pvc_run: Any, image: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `image upload deb FILE` over the network, with more options behind it."""
    monkeypatch.setenv("PVC_API_URL", tus.url)
    monkeypatch.setattr(pvc_run, "adapter", None)
    return lambda *options, file=image: pvc_run(*command(file, *options))


def command(file: Path, *options: str) -> tuple[str, ...]:
    disk = ("--type", "disk", "--format", "qcow2", "--pool", "vms")
    return ("provisioner", "image", "upload", "deb", str(file), *disk, *options)


def program(tus: TusApi, file: Path, *options: str) -> "subprocess.Popen[str]":
    """The real program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pvc", *command(file, *options)],
        env={**os.environ, "PYTHONPATH": str(CLIENT), "PVC_API_URL": tus.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remembered() -> list[Path]:
    return sorted(Path(os.environ["PVC_CLIENT_DIR"]).glob("uploads/*"))


def check_arrived(tus: TusApi, result: Any, image: Path) -> None:
    """The image is whole, and nothing is remembered any more."""
    assert (result.code, result.out) == (0, READY), result.err
    assert tus.images["deb"]["sha256"] == sha256(image)
    assert remembered() == []


def test_an_upload_as_it_should_be(tus: TusApi, upload: Any, image: Path) -> None:
    digest = sha256(image)
    result = upload("--node", "hv1", "--sha256", digest.upper())
    check_arrived(tus, result, image)
    assert tus.metadata == [
        {
            "name": "deb",
            "kind": "disk",
            "format": "qcow2",
            "pool": "vms",
            "node": "hv1",
            "sha256": digest,
        }
    ]
    # The next chunk is read before it is known how long this one takes.
    assert tus.chunk_sizes[:5] == [64 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 256 * KIB]
    assert max(tus.chunk_sizes) == 256 * KIB
    assert tus.keys == {"k3y"}
    assert (tus.count("POST"), tus.count("HEAD"), tus.count("DELETE")) == (1, 0, 0)
    assert "warning: no manifest\n" in result.err


def test_an_empty_file(tus: TusApi, upload: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    check_arrived(tus, upload(file=tmp_path / "empty"), tmp_path / "empty")
    assert tus.count("PATCH") == 0


def test_the_image_as_json(tus: TusApi, upload: Any) -> None:
    assert json.loads(upload("--json").out) == tus.images["deb"]


@pytest.mark.parametrize("seed", range(3))
def test_cut_at_ten_random_places_it_arrives_whole(tus: TusApi, upload: Any, image: Path, seed: int) -> None:
    cuts = sorted(random.Random(seed).sample(range(image.stat().st_size), 10))
    tus.cut_at = list(cuts)
    result = upload()
    check_arrived(tus, result, image)
    assert tus.cut_at == []
    assert tus.count("HEAD") >= 10
    assert tus.count("POST") == 1
    assert result.err.count("trying again") == 10


def test_lost_answers_are_found_out(tus: TusApi, upload: Any, image: Path) -> None:
    tus.drop_answers = 1000
    check_arrived(tus, upload(), image)
    assert tus.count("HEAD") == tus.count("PATCH") == len(tus.chunk_sizes)


def test_a_damaged_chunk_is_sent_again(tus: TusApi, upload: Any, image: Path) -> None:
    tus.answers = [(460, {"message": "the checksum is another", "kind": "wrong-input"})] * 3
    result = upload()
    check_arrived(tus, result, image)
    assert result.err.count("the checksum is another; sending it again\n") == 3


def test_a_wrong_offset_asks_anew(tus: TusApi, upload: Any, image: Path) -> None:
    tus.answers = [(409, {"message": "the upload is at another offset", "kind": "wrong-state"})]
    check_arrived(tus, upload(), image)
    assert tus.count("HEAD") == 1


def test_chunks_that_are_always_refused_end_the_attempts(tus: TusApi, upload: Any) -> None:
    tus.answers = [(460, {"message": "the checksum is another", "kind": "busy-retry"})] * 100
    result = upload()
    assert result.code == EXIT_CODES["busy-retry"]
    assert result.err.splitlines()[-1] == "error: the checksum is another"
    assert tus.count("PATCH") == pvc.image_upload.MAX_REFUSALS
    # What has arrived is right, so it can be continued.
    assert len(remembered()) == 1


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_answers_of_a_proxy_before_an_absent_server_pass(
    tus: TusApi, upload: Any, image: Path, status: int
) -> None:
    tus.answers = [(status, {"message": "away"})] * 4
    check_arrived(tus, upload(), image)


def test_chunks_become_as_small_as_the_server_wants(tus: TusApi, upload: Any, image: Path) -> None:
    tus.largest_chunk = 40 * KIB
    check_arrived(tus, upload(), image)
    tus.images.clear()
    tus.largest_chunk = 10
    assert upload().code != 0


def test_a_server_that_lost_the_upload_gets_it_anew(tus: TusApi, upload: Any, image: Path) -> None:
    tus.lose_at = [MIB]
    result = upload()
    check_arrived(tus, result, image)
    assert tus.count("POST") == 2
    assert "the server does not have the upload any more; starting over\n" in result.err


ENDED = {"what": "import image deb", "why": "it was ended", "kind": "cancelled"}
BUSY = {"what": "upload image deb", "why": "the other end broke it off", "kind": "busy-retry"}


@pytest.mark.parametrize("answer", [(400, ENDED), (503, BUSY)])
@pytest.mark.parametrize("rest", [0, 5])
def test_an_upload_that_its_node_ends_begins_anew_when_nothing_of_it_is_left(
    tus: TusApi, upload: Any, image: Path, answer: tuple[int, dict[str, Any]], rest: int
) -> None:
    """A node daemon that is restarted says so; one that was killed leaves a row for a while."""
    tus.lose_at, tus.lose_answer, tus.lost_rest = [MIB], answer, rest
    tus.offset_answers = [503, 500, 500]
    result = upload()
    check_arrived(tus, result, image)
    assert (tus.count("POST"), tus.lost_rest, tus.offset_answers) == (2, 0, [])
    assert f"{answer[1]['what']}: {answer[1]['why']}; trying again\n" in result.err
    assert "the server does not have the upload any more; starting over\n" in result.err


def test_an_upload_that_is_always_ended_is_given_up(tus: TusApi, upload: Any) -> None:
    tus.lose_at, tus.lose_answer = [MIB] * 100, (400, ENDED)
    result = upload()
    assert result.code == EXIT_CODES["busy-retry"]
    assert "the server lost it 4 times" in result.err
    assert tus.count("POST") == 4
    assert remembered() == []


def test_a_failure_that_ends_the_upload_is_told_and_nothing_is_remembered(
    tus: TusApi, upload: Any, image: Path
) -> None:
    fault = {"message": "what reads it did nothing for 300 s", "kind": "environment"}
    tus.lose_at, tus.lose_answer = [MIB], (500, fault)
    result = upload()
    assert result.code == EXIT_CODES["environment"]
    assert result.err.splitlines()[-1] == "error: what reads it did nothing for 300 s"
    assert remembered() == []


def test_a_failure_that_leaves_the_upload_is_remembered(tus: TusApi, upload: Any, image: Path) -> None:
    tus.answers = [(500, {"message": "the queue does not answer", "kind": "environment"})]
    assert upload().code == EXIT_CODES["environment"]
    assert len(remembered()) == 1
    check_arrived(tus, upload(), image)
    assert tus.count("POST") == 1


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_upload_without_space_is_forgotten(tus: TusApi, upload: Any, image: Path, is_gone: bool) -> None:
    full = (400, {"message": "the pool is full", "kind": "no-space"})
    if is_gone:
        tus.lose_at, tus.lose_answer = [MIB], full
    else:
        tus.answers = [full]
    result = upload()
    assert (result.code, result.err.splitlines()[-1]) == (EXIT_CODES["no-space"], "error: the pool is full")
    assert (tus.uploads, tus.images, remembered()) == ({}, {}, [])
    result = upload("--node", "hv2")
    check_arrived(tus, result, image)
    assert "the earlier upload is ended" not in result.err


def test_a_server_that_always_loses_it_is_given_up(tus: TusApi, upload: Any) -> None:
    tus.lose_at = [MIB] * 100
    result = upload()
    assert result.code == EXIT_CODES["busy-retry"]
    assert "the server lost it 4 times" in result.err
    assert remembered() == []


def test_an_upload_gone_because_it_was_complete(tus: TusApi, upload: Any, image: Path) -> None:
    """The answer to the last chunk is lost, and the server has forgotten the upload by then."""
    tus.forget_complete = True
    tus.drop_answers = 1000
    check_arrived(tus, upload(), image)
    assert tus.count("POST") == 1


def test_an_image_that_fails_meanwhile_says_why(tus: TusApi, upload: Any) -> None:
    def fail() -> None:
        assert tus.held.wait(30)
        tus.uploads.clear()
        tus.images["deb"].update(state="failed", error={"kind": "wrong-input", "what": "it is no qcow2"})
        tus.go_on.set()

    tus.hold_at = MIB
    thread = threading.Thread(target=fail)
    thread.start()
    result = upload()
    thread.join()
    assert result.code == EXIT_CODES["wrong-input"]
    assert "error: the image deb could not be made: it is no qcow2\n" in result.err
    assert remembered() == []


def test_an_image_that_fails_at_its_end_says_why(tus: TusApi, upload: Any) -> None:
    error = {"kind": "no-space", "what": "the pool is full", "why": "1 GiB\x1b[2J", "hint": "make room"}
    tus.end_state = {"state": "failed", "error": error}
    result = upload()
    assert result.code == EXIT_CODES["no-space"]
    assert result.err.splitlines()[-2:] == [
        "error: the image deb could not be made: the pool is full: 1 GiB",
        "hint: make room; the next image of this name takes its place, or `pvc provisioner image delete deb`",
    ]
    assert remembered() == []


def test_refused_content_is_ended_on_the_server(tus: TusApi, upload: Any) -> None:
    tus.answers = [(400, {"message": "it is no qcow2 image", "kind": "wrong-input"})]
    result = upload()
    assert (result.code, result.err.splitlines()[-1]) == (2, "error: it is no qcow2 image")
    assert (tus.uploads, tus.images, remembered()) == ({}, {}, [])


def test_a_name_that_is_taken(tus: TusApi, upload: Any) -> None:
    tus.images["deb"] = {"name": "deb", "state": "ready", "created": "long ago"}
    result = upload()
    assert (result.code, result.err) == (EXIT_CODES["exists"], "error: the image deb exists\n")
    assert remembered() == []


def test_a_server_that_stays_away_is_given_up_with_advice(
    tus: TusApi, upload: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tus.cut_at = [MIB]
    with monkeypatch.context() as patch:
        patch.setattr(pvc.image_upload, "PATIENCE_S", -1.0)
        result = upload()
    assert result.code == EXIT_CODES["unreachable"]
    *_, error, hint = result.err.splitlines()
    assert error.startswith("error: the upload of deb was given up at 52 % (1 MiB of 1.907 MiB): ")
    assert hint == "hint: the same command continues it; the server keeps what it has for 15 minutes"
    result = upload()
    check_arrived(tus, result, image)
    assert "continuing the earlier upload at 52 % (1 MiB of 1.907 MiB)\n" in result.err
    assert tus.count("POST") == 1


def test_the_api_may_be_away_while_the_image_is_made(
    tus: TusApi, upload: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pvc.image_wait.image_or_none
    answers = iter([None, pvc.image_wait.CliError("away", kind="unreachable")])

    def sometimes(client: Any, name: str) -> Any:
        error = next(answers, None)
        if error is not None:
            raise error
        return real(client, name)

    monkeypatch.setattr(pvc.image_wait, "image_or_none", sometimes)
    check_arrived(tus, upload(), image)


def test_a_restart_refuses_new_uploads_for_a_while(tus: TusApi, upload: Any, image: Path) -> None:
    """The parameters were right a moment ago; a node that is not back yet makes them look wrong."""
    no_pool = (400, {"message": "no living node has such a pool", "kind": "wrong-input"})
    tus.lose_at, tus.begin_answers = [MIB], [no_pool, no_pool, (502, {"message": "away"})]
    check_arrived(tus, upload(), image)
    assert tus.count("POST") == 5


def test_a_beginning_whose_answer_is_lost_does_not_hold_the_name(
    tus: TusApi, upload: Any, image: Path
) -> None:
    tus.lose_at, tus.begin_answers = [MIB], [None]
    check_arrived(tus, upload(), image)
    assert [request for request in tus.requests if request.startswith("DELETE")] == ["DELETE /image/deb"]
    assert tus.count("POST") == 4


def test_without_the_right_to_begin_anew_it_ends(tus: TusApi, upload: Any) -> None:
    tus.lose_at, tus.begin_answers = [MIB], [(403, {"message": "viewers read", "kind": "forbidden"})]
    assert upload().code == EXIT_CODES["forbidden"]


# ---- the file


def test_a_file_that_changes_its_size_is_an_error(tus: TusApi, upload: Any, image: Path) -> None:
    def change() -> None:
        assert tus.held.wait(30)
        with image.open("ab") as file:
            file.write(b"more")
        tus.go_on.set()

    tus.hold_at = 100 * KIB
    thread = threading.Thread(target=change)
    thread.start()
    result = upload()
    thread.join()
    assert result.code == EXIT_CODES["busy-retry"]
    assert f"{image} changed while it was uploaded: it had 2000003 bytes, and has 2000007" in result.err
    assert (tus.uploads, tus.images, remembered()) == ({}, {}, [])


@pytest.mark.parametrize("change", ["truncate", "write"])
def test_other_changes_of_the_file(image: Path, change: str) -> None:
    from pvc.upload_source import FileChanged, UploadSource

    with image.open("rb", buffering=0) as file:
        source = UploadSource(file)
        assert len(source.read_at(0, MIB)) == MIB
        if change == "truncate":
            os.truncate(image, 100)
        else:
            os.utime(image, ns=(0, 0))
        with pytest.raises(FileChanged):
            source.read_at(MIB, MIB)


# ---- continuing after a crash


def crashed(tus: TusApi, file: Path, *options: str, at: int = MIB) -> None:
    """Kill the program in the middle of an upload."""
    tus.hold_at, tus.discard_held = at, True
    running = program(tus, file, *options)
    try:
        assert tus.held.wait(30), running.communicate()
    finally:
        running.kill()
        running.communicate()
    tus.hold_at = None
    tus.go_on.set()
    assert len(remembered()) == 1


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More than the first chunks of the program as it is."""
    path = tmp_path / "large.qcow2"
    path.write_bytes(random.Random(5).randbytes(6 * MIB))
    return path


def test_after_a_crash_the_same_command_continues(tus: TusApi, upload: Any, large: Path) -> None:
    crashed(tus, large, at=5 * MIB)
    assert remembered()[0].stat().st_mode & 0o777 == 0o600
    result = upload(file=large)
    check_arrived(tus, result, large)
    assert "continuing the earlier upload at 66 % (4 MiB of 6 MiB)\n" in result.err
    assert tus.count("POST") == 1


def test_a_file_that_has_changed_since_begins_anew(tus: TusApi, upload: Any, large: Path) -> None:
    crashed(tus, large)
    with large.open("r+b") as file:
        file.write(b"other")
    result = upload(file=large)
    check_arrived(tus, result, large)
    assert "the earlier upload is ended\n" in result.err
    assert (tus.count("POST"), tus.count("DELETE")) == (2, 1)


def test_other_options_begin_anew(tus: TusApi, upload: Any, large: Path) -> None:
    crashed(tus, large)
    check_arrived(tus, upload("--node", "hv2", file=large), large)
    assert [metadata.get("node") for metadata in tus.metadata] == [None, "hv2"]


def test_an_upload_that_the_server_has_ended_meanwhile(tus: TusApi, upload: Any, large: Path) -> None:
    crashed(tus, large)
    tus.lose_all()
    check_arrived(tus, upload(file=large), large)
    assert tus.count("POST") == 2


def test_an_image_made_by_others_meanwhile_is_not_ours(tus: TusApi, upload: Any, large: Path) -> None:
    crashed(tus, large)
    tus.lose_all()
    tus.images["deb"] = {"name": "deb", "state": "ready", "created": "later"}
    result = upload(file=large)
    assert result.code == EXIT_CODES["exists"]
    assert result.err.splitlines()[-1] == "error: the image deb exists"


def test_the_rest_of_a_lost_upload_may_hold_the_name_for_a_while(
    tus: TusApi, upload: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose() -> None:
        assert tus.held.wait(30)
        tus.uploads.clear()
        tus.images["deb"]["created"] = "another"
        tus.go_on.set()

    def undo(_: float) -> None:
        if tus.count("POST") == 4:
            tus.images.clear()

    tus.hold_at = MIB
    monkeypatch.setattr(pvc.image_upload.time, "sleep", undo)
    thread = threading.Thread(target=lose)
    thread.start()
    check_arrived(tus, upload(), image)
    thread.join()
    assert tus.count("POST") == 5


@pytest.mark.parametrize("text", ["", "{", "[]", "17", '{"id": "u1"}', "\x00" * 10])
def test_a_record_that_is_no_good(tus: TusApi, upload: Any, large: Path, text: str) -> None:
    crashed(tus, large)
    remembered()[0].write_text(text)
    tus.lose_all()
    check_arrived(tus, upload(file=large), large)


def test_two_at_once_do_not_take_each_others_upload(tus: TusApi, upload: Any, large: Path) -> None:
    tus.hold_at = MIB
    running = program(tus, large)
    try:
        assert tus.held.wait(30)
        result = upload(file=large)
        tus.hold_at = None
        tus.go_on.set()
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert result.code == EXIT_CODES["busy-retry"]
    assert "another pvc of yours uploads the image 'deb' at this moment" in result.err
    assert (running.returncode, out) == (0, READY), err
    assert remembered() == []


def test_without_a_place_to_remember_it_uploads_all_the_same(
    tus: TusApi, upload: Any, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PVC_CLIENT_DIR", str(tmp_path / "file"))
    result = upload()
    assert (result.code, result.out) == (0, READY)
    assert "cannot be continued by another run" in result.err


# ---- Ctrl-C


def interrupted(tus: TusApi, file: Path, *options: str) -> tuple[int, list[str]]:
    tus.hold_at = 5 * MIB
    running = program(tus, file, *options)
    try:
        assert tus.held.wait(30)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
        tus.hold_at = None
        tus.go_on.set()
    assert out == ""
    return running.returncode, err.splitlines()[-2:]


def test_ctrl_c_ends_the_upload_on_the_server(tus: TusApi, large: Path) -> None:
    assert interrupted(tus, large) == (
        130,
        [
            "error: the upload of deb was stopped at 66 % (4 MiB of 6 MiB)",
            "hint: nothing is left of it; with `--keep` the same command could have continued it",
        ],
    )
    assert (tus.uploads, tus.images, remembered()) == ({}, {}, [])


def test_ctrl_c_can_keep_the_upload(tus: TusApi, upload: Any, large: Path) -> None:
    assert interrupted(tus, large, "--keep") == (
        130,
        [
            "error: the upload of deb was stopped at 66 % (4 MiB of 6 MiB)",
            "hint: the same command continues it within 15 minutes; then the server ends it",
        ],
    )
    assert tus.count("DELETE") == 0
    check_arrived(tus, upload(file=large), large)
    assert tus.count("POST") == 1


def test_ctrl_c_while_the_image_is_made_ends_only_the_waiting(
    tus: TusApi, upload: Any, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    tus.polls_until_ready = 10
    with monkeypatch.context() as patch:
        patch.setattr(pvc.image_wait.time, "sleep", stop)
        result = upload()
    assert result.code == 130
    assert result.err.splitlines()[-2] == "error: stopped waiting, the image deb is still being made"
    assert tus.count("DELETE") == 0
    check_arrived(tus, upload(), image)
    assert tus.count("POST") == 1


# ---- memory, and what is shown


MEASURE = """
import re, sys
from pvc.main import run
import pvc.image_wait
pvc.image_wait.POLL_S = 0
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
small, large = sys.argv[1:]
disk = ["--type", "disk", "--format", "raw", "--pool", "vms"]
assert run(["provisioner", "image", "upload", "small", small, *disk]) == 0
before = peak_kib()
assert run(["provisioner", "image", "upload", "large", large, *disk]) == 0
print(peak_kib() - before)
"""


def test_a_large_file_needs_little_memory(tus: TusApi, tmp_path: Path) -> None:
    for name, size in (("small", 1), ("large", 2 << 30)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    tus.no_hash = True
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE, tmp_path / "small", tmp_path / "large"],
        env={**os.environ, "PYTHONPATH": str(CLIENT), "PVC_API_URL": tus.url},
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    assert sum(tus.chunk_sizes) == (2 << 30) + 1
    # The largest chunk, the one before it, and the allocator's rest.
    assert int(done.stdout.split()[-1]) < 64 * 1024


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown(
    tus: TusApi, upload: Any, image: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("pvc.transfer_progress.LINE_EVERY_S", 0.0)
    monkeypatch.setattr("pvc.image_wait.LINE_EVERY_S", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    tus.cut_at = [MIB]
    result = upload()
    check_arrived(tus, result, image)
    assert f"uploading {image}: 1.907 MiB in " in result.err
    if not terminal:
        assert f"{image}: 52 %, 1 MiB of 1.907 MiB, " in result.err
        assert "making the image deb: 50 %\n" in result.err
    assert pvc_quiet_is_quiet(upload, tus)


def pvc_quiet_is_quiet(upload: Any, tus: TusApi) -> bool:
    tus.images.clear()
    os.environ["PVC_QUIET"] = "1"
    try:
        return bool(upload().err == "")
    finally:
        del os.environ["PVC_QUIET"]


def test_a_rate_counts_only_what_was_sent() -> None:
    from pvc.context import Context
    from pvc.transfer_progress import Transfer, progress_text

    assert progress_text(3 << 30, 4 << 30, 10, 2 << 30) == "75 %, 3 GiB of 4 GiB, 102.4 MiB/s, 10 s left"
    transfer = Transfer(Context(), "it", 100)
    transfer.begin_at(50)
    transfer.advance(10)
    transfer.move_to(20)
    assert (transfer.done_bytes, transfer.found_bytes) == (20, 20)


def test_an_absent_server_is_said_at_once(upload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("PVC_API_URL", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert upload().code == EXIT_CODES["unreachable"]
    assert time.monotonic() - began < 20
