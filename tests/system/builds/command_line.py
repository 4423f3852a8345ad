"""`pvc` as a user runs it, against a running stack."""

import subprocess
from collections.abc import Mapping

from cluster import Cluster

NONE: Mapping[str, str] = {}


def client_environment(cluster: Cluster, more: Mapping[str, str] = NONE) -> dict[str, str]:
    """What `pvc` is started with; what it remembers is kept with the stack."""
    return {**cluster.environment, "PVC_CLIENT_DIR": str(cluster.stack.state / "client"), **more}


def run_pvc(
    cluster: Cluster, *words: str, timeout_s: float = 60, environment: Mapping[str, str] = NONE
) -> "subprocess.CompletedProcess[str]":
    """The command to its end, however it ends; one that does not end fails the test with what it said."""
    options = {"env": client_environment(cluster, environment), "capture_output": True}
    try:
        done = subprocess.run(["pvc", *words], check=False, timeout=timeout_s, **options)
    except subprocess.TimeoutExpired as exc:
        said = ((exc.stdout or b"") + (exc.stderr or b"")).decode(errors="replace")
        raise AssertionError(f"{words}: not done after {timeout_s} s:\n{said[-4000:]}") from None
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def pvc(cluster: Cluster, *words: str, timeout_s: float = 60) -> str:
    """What a command that succeeds prints."""
    done = run_pvc(cluster, *words, timeout_s=timeout_s)
    assert done.returncode == 0, f"{words}: {done.stderr[-4000:]}"
    return done.stdout
