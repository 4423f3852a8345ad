"""What builders do that start from an image: disks cloned and grown, an identity of its own.

The identity comes in one of two ways:

seed          a small CD-ROM for cloud-init; nothing here mounts the image's file systems
personalise   the root file system is mounted by the node's kernel and changed (see docs/security.md)
"""

from dataclasses import replace
from typing import Final

from vmbuilder import cdrom, identity
from vmbuilder.builder import VMBuilder
from vmbuilder.cloud_init import NOCLOUD_LABEL, Instance
from vmbuilder.command import require_tools
from vmbuilder.context import Context
from vmbuilder.errors import ValidationError
from vmbuilder.guest_root import GuestRoot, mount_root
from vmbuilder.image_disk import NEVER, ImageDisk
from vmbuilder.volumes import Volume

TARGET: Final = "/tmp/target"
_GROWING_TOOLS: Final = ("sfdisk", "e2fsck", "resize2fs")


class ClonedImage:
    """The steps of a build from an image; `root` when it is mounted."""

    def __init__(self, builder: VMBuilder, *, grow: str, personalise: bool) -> None:
        self._builder, self._grow, self._personalise = builder, grow, personalise
        self._disks: list[ImageDisk] = []
        self.root: GuestRoot | None = None

    @property
    def clones(self) -> list[Volume]:
        """The disks that start from something."""
        return [volume for volume in self._builder.volumes if volume.source_volume]

    def check(self) -> None:
        """Raise ValidationError for a plan or a node that this cannot work with; for setup()."""
        if not self.clones:
            raise ValidationError("no disk of the VM starts from an image: give the profile an image")
        self._builder.volumes.check()
        require_tools([] if self._grow == NEVER else _GROWING_TOOLS)
        require_tools([] if self._personalise else cdrom.TOOLS)

    def context(self, *, firmware: str | None = None) -> Context:
        """The plan with the devices this way needs, for `domain_xml`; `firmware` None: as planned."""
        context = self._builder.context
        if self._personalise:
            context = replace(context, cdroms=tuple(item for item in context.cdroms if not item.temporary))
        return replace(context, domain=replace(context.domain, firmware=firmware or context.domain.firmware))

    def make_disks(self) -> None:
        """Clone, grow, format what is new; for prepare()."""
        self._builder.progress("cloning the image")
        for volume in self._builder.volumes:
            volume.create()
            volume.map()
            if volume.source_volume:
                disk = ImageDisk(volume)
                disk.grow(self._grow)
                self._disks.append(disk)
            else:
                volume.format()
        if self._personalise:
            self.root = mount_root(self._builder.volumes, self._disks, TARGET)

    def make_identity(self) -> None:
        """Make it this VM and no other; for install()."""
        builder = self._builder
        instance = Instance(str(builder.vm_uuid), builder.vm_name, builder.userdata)
        builder.progress("making it this VM")
        if self.root is None:
            cdrom.make(builder.answers, NOCLOUD_LABEL, instance.files())
            unknown = [volume.disk_id for volume in self._new_disks() if volume.mountpoint]
            if unknown:
                builder.log_warn(
                    f"the guest is not told where to mount {', '.join(unknown)}: say it in user data"
                )
            return
        identity.renew(self.root.path, instance)
        contents = [volume.content for volume in self._new_disks() if volume.content]
        identity.add_mounts(self.root.path, [item for item in contents if item.mountpoint])

    def _new_disks(self) -> list[Volume]:
        return [volume for volume in self._builder.volumes if not volume.source_volume]
