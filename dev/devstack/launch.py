"""Starts one long-running process and prints how to recognise it; run as a program of its own.

Reads a JSON object from stdin: argv, env, log (a path to append to), user (name or null). Because this
program ends at once, the process it leaves belongs to init and is never a zombie of the caller.
"""

import grp
import json
import os
import pwd
import subprocess
import sys
from typing import Any


def identity(user: str | None) -> dict[str, Any]:
    """What Popen needs to become `user` with that user's groups; nothing for root."""
    if user is None:
        return {}
    account = pwd.getpwnam(user)
    groups = [group.gr_gid for group in grp.getgrall() if user in group.gr_mem]
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [account.pw_gid, *groups]}


def main() -> None:
    order = json.load(sys.stdin)
    with open(order["log"], "ab") as log:
        process = subprocess.Popen(
            order["argv"],
            env=order["env"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o022,
            **identity(order["user"]),
        )
    print(process.pid, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
