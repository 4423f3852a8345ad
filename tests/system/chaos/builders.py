"""The builders of the matrix, and how their scripts are made to wait inside a stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import NOOP

STAGES = ("load", "setup", "create", "prepare", "install", "cleanup")
HERE = "chaos: here"

Disks = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Builder:
    """A script with its disks; a build with a fault in it must have ended after `limit_s`."""

    name: str
    path: Path
    disks: Disks
    limit_s: float
    arguments: tuple[str, ...] = ()
    reports_half: bool = False  # install() says how far it is, and is stopped in the middle

    def script(self, stage: str = "") -> str:
        """The builder's source; with a stage, made to wait there until it gets SIGUSR1."""
        return self.path.read_text() + (WAIT + self._hook(stage) if stage else "")

    def _hook(self, stage: str) -> str:
        if stage == "load":
            return "_chaos_wait()\n"
        if stage == "install" and self.reports_half:
            return HALF_WAY
        return AFTER.format(stage=stage) if stage == "prepare" else BEFORE.format(stage=stage)


# What is put behind a builder's source. Children of the script inherit the blocked signal: they ignore it.
WAIT = f'''

import signal as _signal


def _chaos_wait():
    _signal.signal(_signal.SIGUSR1, lambda *_: None)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {{_signal.SIGUSR1}})
    print("{HERE}", flush=True)
    _signal.sigtimedwait({{_signal.SIGUSR1}}, 120)


'''
# With nothing done, where the stage makes nothing that could be held.
BEFORE = """\
_chaos_stage = VMBuilderScript.{stage}


def _chaos_before(self):
    _chaos_wait()
    return _chaos_stage(self)


VMBuilderScript.{stage} = _chaos_before
"""
# With everything made, formatted, mapped and mounted.
AFTER = """\
_chaos_stage = VMBuilderScript.{stage}


def _chaos_after(self):
    result = _chaos_stage(self)
    _chaos_wait()
    return result


VMBuilderScript.{stage} = _chaos_after
"""
# In the middle of the writing; mmdebstrap goes on meanwhile, as it would.
HALF_WAY = """\
_chaos_progress = VMBuilderScript.progress
_chaos_waited = []


def _chaos_half_way(self, message, percent=None):
    if percent is not None and percent >= 40 and not _chaos_waited:
        _chaos_waited.append(True)
        _chaos_wait()
    return _chaos_progress(self, message, percent)


VMBuilderScript.progress = _chaos_half_way
"""

BUILDERS = {
    builder.name: builder
    for builder in (
        Builder("noop", NOOP, {"sda": {"disk_size": 1}}, limit_s=60),
        Builder(
            "two-disk",
            Path(__file__).with_name("two_disks.py"),
            {
                "sda": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/"},
                "sdb": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/srv"},
            },
            limit_s=60,
            reports_half=True,
        ),
        Builder(
            "debootstrap",
            NOOP.with_name("debootstrap.py"),
            {"sda": {"disk_size": 3, "filesystem": "ext4", "mountpoint": "/"}},
            limit_s=180,
            arguments=("packages=dbus,iproute2,netbase",),
            reports_half=True,
        ),
    )
}
