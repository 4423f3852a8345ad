"""Waiting for a guest that installs itself from its CD-ROMs."""

from collections.abc import Sequence

from pvccommon.errors import EnvironmentFault, ScriptFailed, TimedOut
from pvccommon.storage.pool import StoragePool
from pvcnoded.build_log import BuildLog
from pvcnoded.hypervisor import Hypervisor

Disk = tuple[StoragePool, str]  # and the volume's name
LOGGED_LINES, REPORTED_LINES = 40, 3
MAX_LINE_CHARS = 120


def install_by_guest(
    hypervisor: Hypervisor, log: BuildLog, name: str, disks: Sequence[Disk], timeout_s: int
) -> None:
    """Start a domain and wait until its guest ends it; a reboot counts, too (see `resolve_domain`).

    Raises TimedOut; EnvironmentFault when it ended in another way; ScriptFailed when nothing was written to
    the disks. The errors have the end of its console, the log has more of it.
    """
    what = f"install VM {name} from its CD-ROM"
    before = _used_bytes(disks)
    hypervisor.start(name)
    log.info(f"the guest installs itself from its CD-ROM; at most {timeout_s} s")
    try:
        hypervisor.wait_ended_by_guest(name, timeout_s, lambda: _show_console(hypervisor, log, name))
    except TimedOut as exc:
        why = f"the guest did not power itself off within {timeout_s} s"
        hint = "see its console in the log; do the answers end with a power-off?"
        raise TimedOut(what, _with_console(hypervisor, log, name, why), hint) from exc
    except EnvironmentFault as exc:
        raise EnvironmentFault(what, _with_console(hypervisor, log, name, exc.why), exc.hint) from exc
    if _used_bytes(disks) == before:
        why = "the guest ended, but has written nothing to its disks"
        raise ScriptFailed(what, _with_console(hypervisor, log, name, why), "see its console in the log")
    log.info("the guest has ended by itself; taking its CD-ROMs away")


def _used_bytes(disks: Sequence[Disk]) -> list[int]:
    return [pool.stat_volume(volume).used_bytes for pool, volume in disks]


def _show_console(hypervisor: Hypervisor, log: BuildLog, name: str) -> None:
    """What the guest said last, as the task's progress."""
    last = hypervisor.console_end(name, 1)
    log.progress(f"installing: {last[0][:MAX_LINE_CHARS]}" if last else "installing", None)
    log.tick()


def _with_console(hypervisor: Hypervisor, log: BuildLog, name: str, why: str) -> str:
    """The reason with the end of the guest's console, of which the log gets more."""
    lines = hypervisor.console_end(name, LOGGED_LINES)
    if not lines:
        return f"{why}; its console stayed empty"
    log.error("the end of its console:")
    for line in lines:
        log.info(line)
    end = " / ".join(line[:MAX_LINE_CHARS] for line in lines[-REPORTED_LINES:])
    return f"{why}; its console ends with: {end}"
