"""RBD images as block devices: by the kernel where it has RBD, else qemu-storage-daemon and a loop device.

Both are opened in a `turn` on the image and noted there, so that whoever comes later knows whose they are.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pvccommon.errors import PvcError, WrongState
from pvccommon.run import CommandFailed, run
from pvccommon.storage.ceph import CephAccount
from pvccommon.storage.export import Watch, open_export
from pvccommon.storage.faults import os_errors
from pvccommon.storage.image_users import READER, WRITER, ImageUsers, Watcher
from pvccommon.storage.loop import loop_device
from pvccommon.storage.pool import BlockDevice

MappingMode = Literal["auto", "loop", "export", "kernel"]

KERNEL = Path("/sys/bus/rbd")
MAP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Image:
    """An image as programs name it; `label` is how errors do."""

    id: str
    pool: str
    name: str
    label: str


@cache
def kernel_has_rbd() -> bool:
    """Whether this kernel can map images; asked once."""
    if not KERNEL.exists():
        with suppress(CommandFailed):
            run(["modprobe", "--quiet", "rbd"], timeout_s=30, ok=range(256))
    return KERNEL.exists()


def choose(mode: MappingMode) -> Literal["kernel", "export"]:
    """What `storage.mapping` means for RBD on this host."""
    if mode in ("kernel", "export"):
        return "kernel" if mode == "kernel" else "export"
    return "kernel" if kernel_has_rbd() else "export"


@contextmanager
def map_image(
    account: CephAccount,
    users: ImageUsers,
    image: Image,
    mode: MappingMode,
    *,
    read_only: bool,
    find_fault: Watch,
) -> Iterator[BlockDevice]:
    """The image as a block device, for as long as the context and this process live. Raises Busy.

    `find_fault` tells why a write could wait for ever. When it has done so twice, an export is ended, with
    that error; the kernel's RBD answers writes to a full pool with an error by itself.
    """
    what = f"open volume {image.label}"
    if mode == "loop":
        hint = "set storage.mapping to auto in the configuration"
        raise WrongState(what, "an RBD image is no file that a loop device could sit on", hint)
    with ExitStack() as stack:
        if choose(mode) == "kernel":
            with users.turn(image.id, what):
                users.refuse_users(image.id, what, readers_may=read_only)
                device, client = stack.enter_context(_kernel_device(account, image, read_only))
                stack.enter_context(users.noted(image.id, client, READER if read_only else WRITER))
        else:
            fd = _exported(stack, account, users, image, what, read_only, find_fault)
            # No direct I/O on an export: see export.py.
            loop = loop_device(fd, image.label, read_only=read_only, direct_io=False)
            device = stack.enter_context(loop)
        yield device


def _exported(
    stack: ExitStack,
    account: CephAccount,
    users: ImageUsers,
    image: Image,
    what: str,
    read_only: bool,
    find_fault: Watch,
) -> int:
    """A descriptor of the image's export."""
    node = {
        "driver": "rbd",
        "pool": image.pool,
        "image": image.name,
        "conf": account.conf,
        "user": account.user,
        "discard": "unmap",
        "read-only": read_only,
    }
    with users.turn(image.id, what):
        users.refuse_users(image.id, what, readers_may=read_only)
        before = users.watchers(image.id, what)
        new: list[Watcher] = []
        watch = None if read_only else twice(find_fault, lambda: users.fence(new))
        export = open_export(node, what, read_only=read_only, environment=_environment(account), watch=watch)
        fd = stack.enter_context(export)
        new += [watcher for watcher in users.watchers(image.id, what) if watcher not in before]
        # More than one: a domain was started at this moment. Whose client is whose cannot be told then, and a
        # wrong note would have the domain fenced.
        if len(new) == 1:
            stack.enter_context(users.noted(image.id, new[0], READER if read_only else WRITER))
    return fd


def twice(find_fault: Watch, before_the_end: Callable[[], None]) -> Watch:
    """A watch that believes an error when it comes two times running."""
    seen: list[PvcError] = []

    def watch() -> PvcError | None:
        fault = find_fault()
        if fault is None or not seen:
            seen[:] = [fault] if fault else []
            return None
        before_the_end()
        return fault

    return watch


@contextmanager
def _kernel_device(
    account: CephAccount, image: Image, read_only: bool
) -> Iterator[tuple[BlockDevice, Watcher]]:
    """A mapping with a client of its own (noshare), so that it can be fenced alone."""
    options = ["--options", "noshare", *(["--read-only"] if read_only else [])]
    name = f"{image.pool}/{image.name}"
    mapped = run(["rbd", *_options(account), "device", "map", *options, name], timeout_s=MAP_TIMEOUT_S)
    path = mapped.stdout.strip()
    with ExitStack() as undo:
        undo.callback(run, ["rbd", "device", "unmap", path], timeout_s=MAP_TIMEOUT_S)
        number = path.removeprefix("/dev/rbd")
        entry = KERNEL / "devices" / number
        client = Watcher(_client_id(entry), (entry / "client_addr").read_text().strip())
        with os_errors(f"open {path} of {image.label}"):
            fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        found = os.fstat(fd).st_rdev
        yield BlockDevice(path, f"rbd{number}", os.major(found), os.minor(found), fd), client
        if not read_only:
            with os_errors(f"flush {path} of {image.label}"):
                os.fsync(fd)


def sweep_kernel_devices(users: ImageUsers, pool: str, find_id: Callable[[str], str | None]) -> list[str]:
    """Unmap devices of this pool whose processes are dead: unlike an export, the kernel keeps them."""
    removed = []
    for device, name in abandoned_devices(users, pool, find_id):
        unmap_abandoned(device)
        removed.append(f"device {device} of {name}")
    return removed


def abandoned_devices(
    users: ImageUsers, pool: str, find_id: Callable[[str], str | None]
) -> Iterator[tuple[str, str]]:
    """Devices of this pool whose processes are dead: (path, "pool/image")."""
    for entry in sorted((KERNEL / "devices").glob("*")):
        name = (entry / "name").read_text().strip()
        image_id = find_id(name) if (entry / "pool").read_text().strip() == pool else None
        if image_id is not None and users.is_abandoned(image_id, _client_id(entry)):
            yield f"/dev/rbd{entry.name}", f"{pool}/{name}"


def unmap_abandoned(device: str) -> None:
    """Unmap a device nobody uses any more. Raises CommandFailed."""
    run(["rbd", "device", "unmap", "--options", "force", device], timeout_s=MAP_TIMEOUT_S)


def _client_id(entry: Path) -> int:
    return int((entry / "client_id").read_text().strip().removeprefix("client"))


def _options(account: CephAccount) -> list[str]:
    options = ["--conf", account.conf, "--id", account.user]
    return [*options, "--keyring", account.keyring] if account.keyring else options


def _environment(account: CephAccount) -> dict[str, str]:
    """librados reads it from here, too; QEMU has no option for a keyring."""
    return {"CEPH_KEYRING": account.keyring} if account.keyring else {}
