"""A VM from a disk image: copy-on-write clones, grown, with an identity of their own."""

from vmbuilder import Argument, VMBuilder
from vmbuilder.cloned_image import ClonedImage
from vmbuilder.domain import Devices, domain_xml


class VMBuilderScript(VMBuilder):
    """A clone of a disk image.

    The disks start as copy-on-write clones of the profile's image (or of the storage template's source
    volumes), which stays as it is. The last partition and its file system take the rest of a larger disk.
    cloud-init in the guest gets host name, instance id and user data by a small CD-ROM that is there for the
    first boot; or, with personalise=true, everything that must differ between VMs is changed on the disk.
    """

    api_version = 1
    answers_mib = 4
    arguments = (
        Argument(
            "grow",
            default="auto",
            choices=("auto", "required", "never"),
            help="let what is on the disks fill them: where it is safe; else fail; or leave it",
        ),
        Argument(
            "personalise",
            type="boolean",
            default=False,
            help="mount the image's root file system and change it; for images you trust",
        ),
        Argument("firmware", choices=("bios", "uefi"), help="default: as the node has it"),
    )

    def setup(self) -> None:
        """Refuse what cannot work before anything is made."""
        wanted = {name: self.arguments[name] for name in ("grow", "personalise")}
        self.image = ClonedImage(self, **wanted)
        self.image.check()

    def create(self) -> str:
        """The machine; the CD-ROM only when it will be there, where kernels for virtual machines see it."""
        context = self.image.context(firmware=self.arguments["firmware"])
        return domain_xml(context, Devices(cdrom_bus="scsi"))

    def prepare(self) -> None:
        """Clone the disks and grow them."""
        self.image.make_disks()

    def install(self) -> None:
        """Make it this VM."""
        self.image.make_identity()

    def cleanup(self) -> None:
        """Give the disks back."""
        self.volumes.release()
