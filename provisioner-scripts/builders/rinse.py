"""Rocky, Alma, CentOS Stream, Fedora and their like from RPM repositories, on new disks."""

from vmbuilder import (
    Argument,
    ValidationError,
    VMBuilder,
    bootloader,
    chroot,
    cloud_init,
    dnf,
    redhat,
    rinse,
)
from vmbuilder.command import require_tools
from vmbuilder.target import Target

TARGET = "/tmp/target"

# What makes it a VM: installed whatever else is wanted.
BOOTABLE = "NetworkManager dracut grub2-efi-x64 grub2-pc grub2-tools shim-x64".split()

# What makes it pleasant: the default of the argument `packages`.
PLEASANT = (
    "ca-certificates cloud-init iproute iputils less openssh-server policycoreutils qemu-guest-agent"
    " selinux-policy-targeted sudo tzdata vim-minimal"
).split()


class VMBuilderScript(VMBuilder):
    """Rocky Linux, AlmaLinux, CentOS Stream, Fedora or another RPM distribution, from its repositories.

    The root disk gets a partition table from which it starts under BIOS and UEFI, all other disks their file
    systems as the storage template says. Console on the first serial port, network by DHCP through
    NetworkManager, SELinux labels on the first boot, cloud-init with the profile's user data, no default
    password: give `root_password_hash`, `ssh_keys` or user data to be able to log in.
    """

    api_version = 1
    arguments = (
        Argument(
            "distribution", default="rocky", pattern=r"[a-z][a-z0-9]*", help="rocky, alma, centos, fedora, …"
        ),
        Argument("release", default="9", pattern=r"[a-z0-9][a-z0-9.-]*", help="its number, such as 9"),
        Argument(
            "engine",
            choices=("dnf", "rinse"),
            help="default: rinse where it knows the release and no repositories are given, else dnf",
        ),
        Argument(
            "repositories",
            type="list",
            pattern=r"(https?://|file:/|/)[^\s,]+",
            help="URLs or directories, with $releasever and $basearch if you like",
        ),
        Argument(
            "repository_keys",
            type="list",
            pattern=r"(https?://|file:/|/)[^\s,]+",
            help="files or URLs of the keys that sign the packages; default: those the node has",
        ),
        Argument("check_signatures", type="boolean", default=True, help="of packages; rinse cannot"),
        Argument("kernel", default="kernel", pattern=r"[A-Za-z0-9][A-Za-z0-9+._-]*", help="package"),
        Argument(
            "packages",
            type="list",
            pattern=r"@?[A-Za-z0-9][A-Za-z0-9+._-]*",
            help="instead of the usual ones",
        ),
        Argument(
            "extra_packages",
            type="list",
            pattern=r"@?[A-Za-z0-9][A-Za-z0-9+._-]*",
            help="besides the usual ones",
        ),
        Argument("user", pattern=r"[a-z_][a-z0-9_-]{0,30}", help="an administrator to create"),
        Argument("ssh_keys", type="list", help="may log in as the user, or as root when there is none"),
        Argument(
            "root_password_hash",
            pattern=r"[!*$./A-Za-z0-9=,]+",
            secret=True,
            help="see crypt(5); default: locked",
        ),
        Argument("locale", default="C.UTF-8", pattern=r"[A-Za-z0-9_.@-]+"),
        Argument("timezone", default="Etc/UTC", pattern=r"[A-Za-z0-9_+/-]+"),
    )

    def setup(self) -> None:
        """Refuse what cannot work before anything is made."""
        bootloader.check_tools()
        self.volumes.check()
        self.volumes.check_root()
        self.distribution, self.release = self.arguments["distribution"], self.arguments["release"]
        self.name = f"{self.distribution}-{self.release}"
        self.given = list(self.arguments["repositories"] or ())
        self.engine = self.arguments["engine"] or self.usual_engine()
        require_tools([self.engine])
        if self.engine == "rinse":
            self.check_rinse()
        else:
            redhat.check_readable(self.distribution, self.release)
            self.repositories = self.find_repositories()
            dnf.check_local(self.repositories)
        if not (self.arguments["root_password_hash"] or self.arguments["ssh_keys"] or self.userdata):
            self.log_warn("nobody will be able to log in: no password hash, SSH key or user data was given")

    def prepare(self) -> None:
        """Make the disks and mount them as the guest will see them."""
        self.progress("making disks")
        self.volumes.create()
        self.volumes.format()
        self.volumes.mount(TARGET)

    def install(self) -> None:
        """Install the packages, then make it this VM."""
        target = Target(TARGET)
        self.progress(f"installing {self.name} with {self.engine}")
        assert self.volumes.root.content
        redhat.prepare_kernel(target, self.volumes.root.content.identifier)
        if self.engine == "rinse":
            rinse.install(target, self.name, next(iter(self.given), None))
        with chroot.system_mounts(TARGET):
            self.install_packages(target)
            self.progress("configuring", 80)
            self.configure(target)
            self.progress("making it bootable", 85)
            self.make_bootable(target)
        self.personalise(target)

    def cleanup(self) -> None:
        """Give the disks back."""
        self.volumes.release()

    def find_repositories(self) -> dnf.Repositories:
        """Those given, else what this node knows; without keys when signatures are not to be checked."""
        urls = self.given or redhat.known_repositories(self.name)
        keys = []
        if self.arguments["check_signatures"]:
            keys = list(self.arguments["repository_keys"] or ())
            keys = keys or redhat.known_keys(self.distribution, self.release)
        return dnf.Repositories(urls, keys, self.distribution, self.release)

    def usual_engine(self) -> str:
        """rinse where it knows the release and nothing speaks against it."""
        return "rinse" if not self.given and rinse.knows(self.name) else "dnf"

    def check_rinse(self) -> None:
        """rinse takes its packages from a directory of a mirror, and believes it."""
        if not rinse.knows(self.name):
            raise ValidationError(
                f"rinse does not know {self.name}: see /etc/rinse on the node, or give repositories"
            )
        if len(self.given) > 1:
            raise ValidationError("rinse takes one repository: the URL of the directory with its packages")
        if self.arguments["check_signatures"]:
            raise ValidationError(
                f"{self.name} would be installed by rinse, which checks no signatures: give repositories and"
                " repository_keys so that dnf installs, or check_signatures=false if you trust its mirror"
            )

    def packages(self) -> list[str]:
        """All packages to install."""
        chosen, extra = self.arguments["packages"] or PLEASANT, self.arguments["extra_packages"] or ()
        wanted = [self.arguments["kernel"], *BOOTABLE, *chosen, *extra, *self.volumes.packages()]
        return sorted(
            {
                *wanted,
                *redhat.core_packages(self.distribution),
                *redhat.language_packages(self.arguments["locale"]),
            }
        )

    def install_packages(self, target: Target) -> None:
        """All at once by the node's own dnf, or what rinse has left out by the new system's dnf."""
        if self.engine == "rinse":
            dnf.install_inside(target, self.packages(), dnf.DnfProgress(self.progress, 40, 75).line)
            return
        database = redhat.database_path(self.distribution, self.release)
        progress = dnf.DnfProgress(self.progress, 5, 75)
        dnf.install(target, self.packages(), self.repositories, database, progress.line)
        redhat.check_database(target, database)

    def configure(self, target: Target) -> None:
        """What is the same for every VM with these arguments."""
        user = self.arguments["user"]
        redhat.set_locale(target, self.arguments["locale"])
        target.set_timezone(self.arguments["timezone"])
        target.use_network_manager()
        target.set_logins(
            user=user,
            ssh_keys=self.arguments["ssh_keys"],
            root_password_hash=self.arguments["root_password_hash"],
        )
        if cloud_init.is_installed(target):
            cloud_init.configure(target, user=user)
        redhat.relabel_on_first_boot(target)

    def make_bootable(self, target: Target) -> None:
        """Kernel, boot loader, file system table."""
        redhat.check_kernel(target)
        bootloader.configure(target, grub=bootloader.REDHAT)
        bootloader.install_bios(target, self.volumes, bootloader.REDHAT)
        efi = bootloader.install_packaged_uefi(target, self.volumes)
        bootloader.write_menu(target, bootloader.REDHAT)
        target.write_fstab([*self.volumes.file_systems(), efi])

    def personalise(self, target: Target) -> None:
        """What makes it this VM and no other."""
        target.set_hostname(self.vm_name)
        target.reset_identity()
        seed = {"instance_id": str(self.vm_uuid), "hostname": self.vm_name, "userdata": self.userdata}
        cloud_init.write_seed_if_installed(target, **seed)
