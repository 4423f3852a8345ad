"""Fixtures for tests that open real sandboxes: root, real loop devices, real file systems."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pvcnoded.sandbox.sandbox import Sandbox, SandboxSpec, open_sandbox
from pvcnoded.sandbox.userns import range_start, uid_slot

FIRST_UID = 1_900_000_000  # far from what a product on the same machine uses

# Runs inside: executes what comes over the channel, one JSON line a time.
AGENT = r"""
import json, os, socket, subprocess, sys
channel = socket.socket(fileno=int(os.environ["PVC_CHANNEL_FD"])).makefile("rwb")
for line in channel:
    request = json.loads(line)
    done = subprocess.run(request["argv"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    answer = {"status": done.returncode, "output": done.stdout.decode(errors="replace")}
    channel.write(json.dumps(answer).encode() + b"\n")
    channel.flush()
"""


@dataclass(frozen=True)
class Answer:
    status: int
    output: str


class Inside:
    """A sandbox whose main program runs what a test sends."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        sandbox.channel.settimeout(300)
        self._channel = sandbox.channel.makefile("rwb")

    def run(self, *argv: str) -> Answer:
        self._channel.write(json.dumps({"argv": argv}).encode() + b"\n")
        self._channel.flush()
        return Answer(**json.loads(self._channel.readline()))

    def sh(self, script: str) -> Answer:
        return self.run("/bin/sh", "-c", script)

    def python(self, source: str) -> Answer:
        return self.run("/usr/bin/python3", "-c", source)

    def good(self, script: str) -> str:
        """Output of a shell script that has to succeed."""
        answer = self.sh(script)
        assert answer.status == 0, answer.output
        return answer.output


@dataclass(frozen=True)
class Loop:
    path: str
    name: str
    major: int
    minor: int
    image: Path


Opener = Callable[..., contextlib.AbstractContextManager[Inside]]
LoopMaker = Callable[..., Loop]


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("opening a sandbox needs root")


@pytest.fixture
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxSpec]:
    slots = tmp_path_factory.getbasetemp().parent / "pvc-test-slots"
    with uid_slot(str(slots)) as slot:
        yield SandboxSpec(build_id="test", first_uid=range_start(FIRST_UID, slot), sdk_zip=b"", network=False)


@pytest.fixture
def opened(spec: SandboxSpec) -> Opener:
    """Open a sandbox with the agent inside; keyword arguments change the spec."""

    @contextlib.contextmanager
    def enter(**changes: object) -> Iterator[Inside]:
        changed = replace(spec, **changes)  # type: ignore[arg-type]
        with open_sandbox(changed, command=["/usr/bin/python3", "-c", AGENT]) as sandbox:
            yield Inside(sandbox)

    return enter


@pytest.fixture
def inside(opened: Opener) -> Iterator[Inside]:
    with opened() as one:
        yield one


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopMaker]:
    """Make a loop device on a sparse file; `filesystem` formats it first."""
    made: list[str] = []

    def make(size_mib: int = 64, filesystem: str | None = None) -> Loop:
        image = tmp_path / f"disk{len(made)}.img"
        with open(image, "wb") as stream:
            stream.truncate(size_mib * 1024 * 1024)
        if filesystem is not None:
            subprocess.run(
                [f"mkfs.{filesystem}", "-q", str(image)], check=True, env={"PATH": os.environ["PATH"]}
            )
        path = subprocess.check_output(["losetup", "--find", "--show", str(image)], text=True).strip()
        made.append(path)
        number = os.stat(path).st_rdev
        return Loop(path, path.removeprefix("/dev/"), os.major(number), os.minor(number), image)

    yield make
    for path in made:
        subprocess.run(["losetup", "--detach", path], check=True)


@pytest.fixture
def disk(loop: LoopMaker) -> Loop:
    return loop()


def give(inside: Inside, disk: Loop, *links: str) -> None:
    inside.sandbox.add_device(disk.name, disk.major, disk.minor, links)


def import_paths() -> str:
    """PYTHONPATH for child processes of tests."""
    return os.pathsep.join(path for path in sys.path if path)
