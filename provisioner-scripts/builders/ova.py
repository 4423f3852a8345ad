"""A VM from an OVA: copies of its disks, on hardware like that it was made for."""

from dataclasses import replace

from vmbuilder import Argument, VMBuilder, guest_drivers, image_hardware
from vmbuilder.cloned_image import ClonedImage
from vmbuilder.domain import domain_xml


class VMBuilderScript(VMBuilder):
    """A clone of an OVA's disks on fitting hardware.

    The disks are copy-on-write clones of the imported ones. Firmware, buses and network cards are those that
    the OVA asks for, or what comes next to them here: virtio where the guest has the drivers, else SATA and
    e1000e. Identity, user data and growing are as with the builder `template`.
    """

    api_version = 1
    answers_mib = 4
    arguments = (
        Argument(
            "networks",
            type="list",
            pattern=r"[^=].*=[A-Za-z0-9._-]+",
            help="network of the OVA=VNI of the profile, for every one; default: in their order",
        ),
        Argument(
            "drivers",
            default="auto",
            choices=("auto", "virtio", "emulated"),
            help="for disks and cards; auto: by the kind of the guest, or by what is found on its disk",
        ),
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
        Argument("firmware", choices=("bios", "uefi"), help="default: as the OVA says"),
    )

    def setup(self) -> None:
        """Refuse what cannot work before anything is made."""
        wanted = {name: self.arguments[name] for name in ("grow", "personalise")}
        self.image = ClonedImage(self, **wanted)
        self.image.check()
        drivers = self.arguments["drivers"]
        found = image_hardware.read_hardware(self.context)
        self.hardware = image_hardware.with_drivers(found, disks=drivers, nics=drivers)
        self.networks = image_hardware.connect(self.context, found, self.arguments["networks"] or ())

    def create(self) -> str:
        """The machine as the OVA describes it."""
        context = self.image.context(firmware=self.arguments["firmware"])
        context = replace(context, networks=self.networks)
        return domain_xml(context, image_hardware.devices(context, self.hardware))

    def prepare(self) -> None:
        """Clone the disks and grow them; when they are mounted, see what the guest can drive."""
        self.image.make_disks()
        if self.image.root is not None and self.arguments["drivers"] == "auto":
            self.fit_drivers(guest_drivers.find_virtio(self.image.root.path))

    def fit_drivers(self, found: guest_drivers.Drivers) -> None:
        """Change the machine when the guest's disk says otherwise than the OVA."""
        words = {True: "virtio", False: "emulated", None: "auto"}
        wanted = {"disks": words[found.disk], "nics": words[found.nic]}
        better = image_hardware.with_drivers(self.hardware, **wanted)
        if better != self.hardware:
            self.log_info(f"the guest's drivers, as found on its disk: {wanted}")
            self.hardware = better
            self.change_domain(self.create())

    def install(self) -> None:
        """Make it this VM."""
        self.image.make_identity()

    def cleanup(self) -> None:
        """Give the disks back."""
        self.volumes.release()
