"""`make bench`: a Debian build next to a bare mmdebstrap of the same packages, and what we add around it.

Both are done in turn, several times, in one run on one machine; what counts is the ratio of the medians.
See benchmarks/README.md.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / part) for part in ("benchmarks", "dev", "daemon-common")]

from imports import measure_import, report_import  # noqa: E402

from devstack import ceph  # noqa: E402 - the paths above lead to it
from devstack.stack import Stack, temporary_stack  # noqa: E402
from pvccommon.errors import EnvironmentFault, PvcError  # noqa: E402
from pvccommon.run import run  # noqa: E402
from pvccommon.storage.ceph import CephAccount  # noqa: E402
from pvccommon.storage.rbd import RbdPool  # noqa: E402

DISK_GIB = 4
CLONE_GIB = 20
CLONE_LIMIT_S = 1.0
CLONE_ROUNDS = 5
RATIO_LIMIT = 1.15
ADDED_LIMIT_S = 2.0
IMAGE_MIB = 256
SECOND_LIMIT_S = 5.0
BUILD_TIMEOUT_S = 1800
# Steps in which the script, not we, decides how long it takes.
SCRIPT_STAGES = ("setup", "create", "prepare", "install", "cleanup")
BUILDERS = CHECKOUT / "provisioner-scripts" / "builders"


@dataclass
class Figures:
    """Seconds of each round."""

    bare: list[float] = field(default_factory=list)
    build: list[float] = field(default_factory=list)
    noop: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)


class Bench:
    """The product's own client on a stack of its own."""

    def __init__(self, stack: Stack) -> None:
        self._environment = stack.environment()

    def pvc(self, *words: str) -> str:
        argv = [str(CHECKOUT / "dev" / "bin" / "pvc"), *words]
        return run(argv, timeout_s=BUILD_TIMEOUT_S, env=self._environment).stdout

    def make_profiles(self) -> None:
        self.pvc(*"provisioner template system add small --vcpus 1 --vram 512 --serial --no-vnc".split())
        self.pvc(*"provisioner template network add none".split())
        self.pvc(*"provisioner template storage add root".split())
        disk = f"--pool vms --size {DISK_GIB} --filesystem ext4 --mountpoint /"
        self.pvc(*f"provisioner template storage disk add root sda {disk}".split())
        for builder in ("noop", "debootstrap"):
            self.pvc("provisioner", "script", "add", builder, str(BUILDERS / f"{builder}.py"))
            parts = "--system-template small --network-template none --storage-template root"
            self.pvc(*f"provisioner profile add {builder} {parts} --script {builder}".split())

    def build(self, profile: str) -> tuple[dict[str, Any], float]:
        """Make and start a VM, then remove it; (the task, seconds from request to answer)."""
        started = time.monotonic()
        task = json.loads(self.pvc("provisioner", "create", "bench", profile, "--json"))
        seconds = time.monotonic() - started
        self.pvc("vm", "remove", "bench", "--yes")
        return task, seconds

    def mmdebstrap_of(self, task: str) -> tuple[list[str], list[str]]:
        """What the builder ran, read from its log: (options, [suite, target, sources…])."""
        for line in self.pvc("cluster", "task", "log", task).splitlines():
            found = re.search(r"\$ (mmdebstrap .*)", line)
            if found:
                words = shlex.split(found[1])[1:]
                options = [word for word in words if word.startswith("--") and word != "--verbose"]
                return options, [word for word in words if not word.startswith("--")]
        raise EnvironmentFault("read the builder's log", "it shows no mmdebstrap")


@contextmanager
def mounted_image(directory: Path) -> Iterator[Path]:
    """A fresh ext4 file system on a loop device."""
    image, mount = directory / "image", directory / "mnt"
    mount.mkdir(exist_ok=True)
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(DISK_GIB * 1024**3)
    run(["mkfs.ext4", "-q", "-F", image], timeout_s=60)
    with ExitStack() as undo:
        run(["mount", "-o", "loop", image, mount], timeout_s=60)
        undo.callback(run, ["umount", mount], timeout_s=120)
        yield mount
    image.unlink()


def bare_mmdebstrap(options: Sequence[str], words: Sequence[str], directory: Path) -> float:
    """Seconds for the same command into a mounted ext4 image, unmounting (so writing) included."""
    suite, _, *sources = words
    started = time.monotonic()
    with mounted_image(directory) as mount:
        run(["mmdebstrap", *options, suite, mount, *sources], timeout_s=BUILD_TIMEOUT_S)
    return time.monotonic() - started


def measure(bench: Bench, rounds: int, directory: Path) -> Figures:
    """A first build fills the caches and tells the packages; then both sides in turn."""
    figures = Figures()
    task, _ = bench.build("debootstrap")
    options, words = bench.mmdebstrap_of(task["id"])
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        figures.bare.append(bare_mmdebstrap(options, words, directory))
        task, seconds = bench.build("debootstrap")
        figures.build.append(seconds)
        figures.stages.append({stage["stage"]: float(stage["seconds"] or 0) for stage in task["stages"]})
        figures.noop.append(bench.build("noop")[1])
    return figures


def report(figures: Figures) -> bool:
    """Print the table; whether both limits hold."""
    bare, build, noop = (statistics.median(f) for f in (figures.bare, figures.build, figures.noop))
    added = statistics.median(
        total - sum(stages.get(name, 0) for name in SCRIPT_STAGES)
        for total, stages in zip(figures.build, figures.stages, strict=True)
    )
    print(f"{'bare mmdebstrap into a mounted image':<44} {bare:7.1f} s")
    print(f"{'debootstrap builder, request to started VM':<44} {build:7.1f} s")
    print(f"{'ratio (at most ' + str(RATIO_LIMIT) + ')':<44} {build / bare:7.2f}")
    print(f"{'around the script, debootstrap (below 2 s)':<44} {added:7.2f} s")
    print(f"{'noop builder, request to started VM':<44} {noop:7.2f} s")
    print("\nstages of the median build:")
    for name in figures.stages[0]:
        print(f"  {name:<12} {statistics.median(stages.get(name, 0) for stages in figures.stages):8.2f} s")
    return build / bare <= RATIO_LIMIT and added < ADDED_LIMIT_S


def measure_second(bench: Bench, directory: Path) -> float:
    """Seconds from the request to the started VM, of the second one from an image."""
    image = directory / "golden.raw"
    image.write_bytes(os.urandom(IMAGE_MIB * 1024**2))
    bench.pvc(*f"provisioner image upload golden {image} --type disk --format raw --pool vms".split())
    bench.pvc("provisioner", "script", "add", "template", str(BUILDERS / "template.py"))
    parts = "--system-template small --network-template none --script template --image golden"
    bench.pvc(*f"provisioner profile add golden {parts}".split())
    bench.build("golden")
    return bench.build("golden")[1]


def report_second(seconds: float) -> bool:
    """Print the line; whether the limit holds."""
    print(f"{f'second VM from an image (below {SECOND_LIMIT_S:g} s)':<44} {seconds:7.2f} s")
    return seconds < SECOND_LIMIT_S


def measure_clone() -> tuple[float, int]:
    """(seconds from a protected RBD snapshot to a device of its clone, bytes the clone occupies)."""
    with temporary_stack(only=["ceph"], pool="ceph") as stack:
        account = CephAccount(ceph.CLIENT, str(ceph.conf(stack.state)), str(ceph.keyring(stack.state)))
        pool = RbdPool(ceph.POOL, account)
        pool.create_volume("golden", CLONE_GIB * 1024**3)
        with pool.open_device("golden") as device:
            os.pwrite(device.fd, os.urandom(64 * 1024**2), 0)
        pool.create_snapshot("golden", "base")
        pool.protect_snapshot("golden", "base")
        seconds = []
        for number in range(CLONE_ROUNDS):
            started = time.monotonic()
            clone = pool.clone_snapshot("golden", "base", f"clone{number}")
            with pool.open_device(clone.name):
                seconds.append(time.monotonic() - started)
        return statistics.median(seconds), clone.used_bytes


def report_clone(seconds: float, used_bytes: int) -> bool:
    """Print the line; whether the limit holds and nothing was copied."""
    label = f"{CLONE_GIB} GiB RBD clone, snapshot to device (below {CLONE_LIMIT_S:g} s)"
    print(f"{label:<44} {seconds:7.2f} s, {used_bytes} bytes copied")
    return seconds < CLONE_LIMIT_S and used_bytes == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-clone", action="store_true", help="measure only the RBD clone")
    parser.add_argument("--only-import", action="store_true", help="measure only the import of an image")
    options = parser.parse_args()
    if options.only_import:
        return 0 if report_import(measure_import(options.rounds, lambda stack: Bench(stack).pvc)) else 1
    cloned = report_clone(*measure_clone())
    if options.only_clone:
        return 0 if cloned else 1
    with temporary_stack() as stack, tempfile.TemporaryDirectory(prefix="pvc-bench-") as directory:
        bench = Bench(stack)
        bench.make_profiles()
        built = report(measure(bench, options.rounds, Path(directory)))
        second = report_second(measure_second(bench, Path(directory)))
    imported = report_import(measure_import(options.rounds, lambda stack: Bench(stack).pvc))
    return 0 if built and second and cloned and imported else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PvcError as exc:
        sys.exit(f"bench: {exc.message}")
