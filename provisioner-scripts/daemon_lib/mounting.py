"""`mount` and `umount` for scripts that call them for their volumes, which only the worker may mount.

Two small programs of these names come first in the PATH. They hand their arguments to this process, which
asks the broker when a volume is meant; everything else goes to the real program.
"""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmbuilder import filesystem, session
from vmbuilder.errors import BrokerError

_DIRECTORY: Final = Path("/run/pvc-mount")
_SOCKET: Final = _DIRECTORY / "socket"
_MESSAGE_BYTES: Final = 65536
_REAL: Final = {"mount": "/usr/bin/mount", "umount": "/usr/bin/umount"}

_PROGRAM: Final = f"""\
#!/usr/bin/python3 -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asked.connect({str(_SOCKET)!r})
asked.send(json.dumps([os.path.basename(sys.argv[0]), os.getcwd(), *sys.argv[1:]]).encode())
code, text = json.loads(asked.recv({_MESSAGE_BYTES}))
sys.stderr.write(text)
sys.exit(code)
"""

Answer = tuple[int, str]


def mounts_by_broker() -> None:
    """Put our mount and umount first in the PATH of this process. Safe to repeat."""
    if str(_DIRECTORY) in os.environ.get("PATH", "").split(":"):
        return
    _DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in _REAL:
        program = _DIRECTORY / name
        program.write_text(_PROGRAM)
        program.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(_SOCKET))
    listener.listen()
    threading.Thread(target=_serve, args=(listener, Mounter()), daemon=True, name="mounting").start()
    os.environ["PATH"] = f"{_DIRECTORY}:{os.environ.get('PATH', os.defpath)}"


def _serve(listener: socket.socket, mounter: "Mounter") -> None:
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError, ValueError):
            name, directory, *arguments = json.loads(connection.recv(_MESSAGE_BYTES))
            connection.send(json.dumps(mounter.answer(name, directory, arguments)).encode())


class Mounter:
    """Knows which paths are mounted by the broker and which are binds of the system's directories."""

    def __init__(self) -> None:
        self._volumes: set[str] = set()
        self._binds: set[str] = set()

    def answer(self, name: str, directory: str, arguments: Sequence[str]) -> Answer:
        """Do what `mount ARGUMENTS` or `umount ARGUMENTS` means in that directory: (code, error text)."""
        options, places = _split(arguments)
        paths = [os.path.normpath(os.path.join(directory, place)) for place in places]
        try:
            if name == "mount" and len(paths) == 2:
                return self._mount(options, paths[0], paths[1], arguments)
            if name == "umount" and len(paths) == 1:
                return self._unmount(paths[0], arguments)
        except BrokerError as exc:
            return 32, f"{name}: {exc}\n"
        return _run(name, arguments)

    def _mount(self, options: Sequence[str], source: str, target: str, arguments: Sequence[str]) -> Answer:
        volume = _volume_of(source)
        if volume is not None:
            found = filesystem.probe(source)
            kind = filesystem.driver_of(found[0]) if found else "ext4"
            read_only = any("ro" in option.split(",") for option in options)
            session.request(
                "volume.mount",
                pool=volume[0],
                volume=volume[1],
                partition=None,
                path=target,
                filesystem=kind,
                read_only=read_only,
            )
            self._volumes.add(target)
            if found:
                # So that GRUB's tools name the file system, and not a device this VM will not have.
                session.request(
                    "device.link", pool=volume[0], volume=volume[1], partition=None, uuid=found[1]
                )
            return 0, ""
        if "--bind" in options or "-B" in options or "bind" in options:
            # Binding only the top of /dev, /proc or /sys is refused in a user namespace: see
            # mount_namespaces(7).
            self._binds.add(target)
            return _run("mount", ["--rbind", source, target])
        return _run("mount", arguments)

    def _unmount(self, target: str, arguments: Sequence[str]) -> Answer:
        if target in self._volumes:
            session.request("volume.unmount", path=target)
            self._volumes.discard(target)
            return 0, ""
        if target in self._binds:
            self._binds.discard(target)
            return _run("umount", ["--lazy", target])
        return _run("umount", arguments)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options (with the values of -t and -o) and places of a mount command line."""
    options, places, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-t", "-o", "--types", "--options") and rest:
            options.append(rest.pop(0))
        elif word.startswith("-"):
            options.append(word)
        else:
            places.append(word)
    return options, places


def _volume_of(source: str) -> tuple[str, str] | None:
    """Pool and volume of /dev/rbd/POOL/VOLUME."""
    parts = source.split("/")
    return (parts[3], parts[4]) if source.startswith("/dev/rbd/") and len(parts) == 5 else None


def _run(name: str, arguments: Sequence[str]) -> Answer:
    done = subprocess.run(
        [_REAL[name], *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, done.stderr.decode(errors="replace")
