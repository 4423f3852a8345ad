"""The base class of builder scripts."""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

from vmbuilder import chroot, command, log
from vmbuilder.channel import Channel
from vmbuilder.context import Context, PlanVolume
from vmbuilder.domain import VIRTIO, Devices, domain_xml
from vmbuilder.errors import ClusterError, ProvisioningError, ValidationError
from vmbuilder.volumes import Volume, Volumes


class VMBuilder:
    """A builder script's class derives from this one and is called `VMBuilderScript`.

    The worker makes one object and calls setup, create, prepare, install and cleanup on it, in this order;
    cleanup also after a stage before it has failed. What to do in each stage: docs/writing-a-builder.md.

    vm_name, vm_id, vm_uuid, vm_profile   the VM being built
    vm_data        the plan as a dictionary; the script's own copy, it may change it
    arguments      the declared arguments by name, of their declared types
    userdata       the cloud-init document of the profile, or None
    volumes        the VM's disks, see vmbuilder.volumes
    context        all of this as one object
    """

    api_version: ClassVar[int | None] = None
    cacheable: ClassVar[bool] = True
    answers_mib: ClassVar[int] = 0

    # The class attribute is the declaration; every object has the values under the same name.
    arguments: Any = ()

    _context: Context | None = None
    _channel: Channel | None = None

    def __init__(
        self,
        *,
        vm_name: str,
        vm_id: int = 0,
        vm_profile: str = "",
        vm_data: dict[str, Any] | None = None,
    ) -> None:
        if self._context is None:
            self.attach(
                Context(vm_name, vm_id, uuid.uuid4(), vm_profile, vm_data if vm_data is not None else {})
            )

    def attach(self, context: Context, channel: Channel | None = None) -> None:
        """Give the object its plan and its way to the cluster; the runner does so before the constructor."""
        self._context, self._channel = context, channel
        self.vm_name, self.vm_id, self.vm_uuid = context.vm_name, context.vm_id, context.vm_uuid
        self.vm_profile, self.vm_data, self.userdata = context.vm_profile, context.vm_data, context.userdata
        self.arguments = dict(context.arguments)
        self.volumes = Volumes(context.volumes, self._request)

    @property
    def context(self) -> Context:
        """The plan, read-only."""
        assert self._context is not None
        return self._context

    # -- the five stages
    # ------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Check arguments and tools; change nothing."""

    def create(self) -> str:
        """Return the libvirt domain document of the VM."""
        return self.domain_xml()

    def prepare(self) -> None:
        """Make, format and mount the VM's volumes."""

    def install(self) -> None:
        """Fill the volumes."""

    def cleanup(self) -> None:
        """Release what the stages took. Also called after one of them failed: some of it may not be there."""

    # -- helpers
    # --------------------------------------------------------------------------------------------------

    def domain_xml(self, kinds: Devices = VIRTIO) -> str:
        """The domain document that follows from the plan; `kinds` for guests without virtio drivers."""
        return domain_xml(self.context, kinds)

    def change_domain(self, xml: str) -> None:
        """Replace the document that create() returned, for what only the disks tell. It is checked again."""
        self._request("domain.change", xml=xml)

    @property
    def answers(self) -> Volume:
        """The small CD-ROM for an installer's answers: see vmbuilder.answers, or create(), map(), fill its
        device, unmap().

        There is one for classes that declare `answers_mib`, its size; one that is not created is left out. It
        goes with the installation medium.
        """
        for cdrom in self.context.cdroms:
            if cdrom.temporary:
                plan = PlanVolume(cdrom.pool, cdrom.volume, cdrom.disk_id, cdrom.size_bytes)
                return Volume(plan, self._request)
        raise ValidationError("the script does not declare answers_mib, the size of its answers")

    def install_from_cdrom(self, timeout_s: int) -> None:
        """The guest installs itself: when cleanup() is done, it starts with the plan's CD-ROMs, and the build
        waits until it powers off or reboots (fails after `timeout_s`); then the VM starts without them.

        Without this call the VM starts with its CD-ROMs, and they are taken away when it first stops.
        """
        self._request("domain.first_boot", until="poweroff", timeout_s=timeout_s)

    def log_info(self, message: str) -> None:
        """Write to the build log."""
        log.write(log.Level.INFO, str(message))

    def log_warn(self, message: str) -> None:
        """Write a warning to the build log."""
        log.write(log.Level.WARNING, str(message))

    def log_err(self, message: str) -> None:
        """Write an error to the build log; the build goes on. To end it, see fail()."""
        log.write(log.Level.ERROR, str(message))

    def fail(self, message: str, exception: type[Exception] = ProvisioningError) -> NoReturn:
        """End the build: raises `exception`."""
        raise exception(message)

    def progress(self, message: str, percent: float | None = None) -> None:
        """Show what the stage is doing, and how far it is (0 to 100) when known."""
        self._request("progress", message=message, percent=percent)

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        chroot: str | os.PathLike[str] | None = None,
        timeout_s: float = command.DEFAULT_TIMEOUT_S,
        input: str | None = None,  # noqa: A002 - the name subprocess uses
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        ok: Iterable[int] = (0,),
        secrets: Iterable[str] = (),
        quiet: bool = False,
        on_line: Callable[[str], str | None] | None = None,
    ) -> command.Completed:
        """Run a program, its output going to the build log line by line. See vmbuilder.command.run."""
        return command.run(
            argv,
            chroot=chroot,
            timeout_s=timeout_s,
            input=input,
            env=env,
            cwd=cwd,
            ok=ok,
            secrets=secrets,
            quiet=quiet,
            on_line=on_line,
        )

    @contextmanager
    def chroot(self, root: str) -> Iterator[None]:
        """Do the block's work with `root` as root directory, and /proc, /sys, /dev and /run there."""
        with chroot.system_mounts(root), chroot.entered(root):
            yield

    def _request(self, verb: str, **arguments: Any) -> dict[str, Any]:
        if self._channel is None:
            raise ClusterError(f"{verb}: this object was made outside a build, so there is no cluster to ask")
        return self._channel.request(verb, **arguments)
