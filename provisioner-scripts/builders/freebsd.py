"""FreeBSD from its distribution sets base.txz and kernel.txz, on a new disk."""

from vmbuilder import Argument, ValidationError, VMBuilder, archive, bootloader, download, freebsd, partitions
from vmbuilder.command import require_tools
from vmbuilder.target import Target

# The new system as files: on the sandbox's tmpfs, until it is put on the disk.
TREE = "/tmp/target"
SETS = ("base", "kernel")
# Of a set as it is fetched; FreeBSD 14's base.txz has 0.2 GiB.
SET_LIMIT_BYTES = 1024**3


class VMBuilderScript(VMBuilder):
    """FreeBSD, from the distribution sets of a release.

    The root disk starts under BIOS and UEFI and gets a UFS2 file system, whatever file system the storage
    template names. All other disks stay blank. Console on the first serial port, network by DHCP, sshd. No
    default password: give `root_password_hash` or `ssh_keys` to be able to log in.
    """

    api_version = 1
    arguments = (
        Argument(
            "base",
            required=True,
            pattern=r"(https?://|/)\S+",
            help="URL, or path on the node, of the release's base.txz",
        ),
        Argument(
            "base_sha256", required=True, pattern=r"[0-9A-Fa-f]{64}", help="as the release's MANIFEST has it"
        ),
        Argument(
            "kernel",
            required=True,
            pattern=r"(https?://|/)\S+",
            help="URL, or path on the node, of the release's kernel.txz",
        ),
        Argument(
            "kernel_sha256",
            required=True,
            pattern=r"[0-9A-Fa-f]{64}",
            help="as the release's MANIFEST has it",
        ),
        Argument("ssh_keys", type="list", help="may log in as root"),
        Argument(
            "root_password_hash",
            pattern=r"[!*$./A-Za-z0-9=,]+",
            secret=True,
            help="see crypt(3) of FreeBSD; default: locked",
        ),
        Argument("timezone", default="Etc/UTC", pattern=r"[A-Za-z0-9_+/-]+"),
    )

    def setup(self) -> None:
        """Refuse what cannot work before anything is made."""
        require_tools(freebsd.TOOLS)
        self.check_disks()
        for name in SETS:
            download.require(self.arguments[name])
        if self.userdata:
            raise ValidationError("the profile has user data, but FreeBSD's base system has no cloud-init")
        if not (self.arguments["root_password_hash"] or self.arguments["ssh_keys"]):
            self.log_warn("nobody will be able to log in: no password hash or SSH key was given")

    def prepare(self) -> None:
        """Make the disks and the root disk's partition table."""
        self.progress("making disks")
        self.volumes.create()
        self.volumes.root.partition(partitions.FREEBSD)

    def install(self) -> None:
        """Unpack the sets, make it this VM, and write it to the disk."""
        target = Target(TREE)
        target.root.mkdir(mode=0o755)
        for number, name in enumerate(SETS):
            self.unpack(name, target, first=5 + 30 * number, last=35 + 30 * number)
        freebsd.check_sets(target)
        self.progress("configuring", 65)
        self.configure(target)
        self.progress("writing the disk", 70)
        self.write_disk(target)

    def cleanup(self) -> None:
        """Give the disks back."""
        self.volumes.release()

    def check_disks(self) -> None:
        """One disk is installed anew; all others are blank or clones."""
        root = self.volumes.root
        if root.source_volume:
            raise ValidationError(f"disk {root.disk_id}: a root disk installed anew cannot be a clone")
        if root.size_bytes:
            partitions.root_disk_layout(root.size_bytes, partitions.FREEBSD)
        wrong = [volume.disk_id for volume in self.volumes if volume.filesystem and not volume.is_root]
        if wrong:
            disks = ", ".join(wrong)
            raise ValidationError(f"disks {disks}: only the root disk gets a file system; leave them blank")

    def unpack(self, name: str, target: Target, *, first: float, last: float) -> None:
        """Fetch one distribution set, check its sum, unpack it."""
        self.progress(f"fetching {name}", first)
        sha256 = self.arguments[f"{name}_sha256"]
        with download.opened(self.arguments[name], sha256, limit_bytes=SET_LIMIT_BYTES) as stream:
            self.progress(f"unpacking {name}", (first + last) / 2)
            archive.unpack_txz(stream, target.root)

    def configure(self, target: Target) -> None:
        """Settings, and what makes it this VM and no other: it makes its SSH host keys itself."""
        freebsd.configure(target, self.vm_name, interfaces=len(self.context.networks))
        freebsd.set_root_password_hash(target, self.arguments["root_password_hash"])
        target.set_timezone(self.arguments["timezone"])
        if self.arguments["ssh_keys"]:
            target.authorize_keys("root", self.arguments["ssh_keys"])
            freebsd.allow_root_keys(target)

    def write_disk(self, target: Target) -> None:
        """Boot code, EFI partition, root file system."""
        root = self.volumes.root
        freebsd.write_boot_code(target, root)
        node = root.partition_nodes[partitions.EFI_SYSTEM]
        bootloader.write_efi_partition(node, root, target.path(freebsd.LOADER))
        freebsd.make_root(target, root)
