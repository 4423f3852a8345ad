"""Debian or Ubuntu from their package archives, on new disks."""

from vmbuilder import Argument, VMBuilder, bootloader, chroot, cloud_init, debian
from vmbuilder.apt_progress import AptProgress
from vmbuilder.apt_sources import host_apt_sources, host_release
from vmbuilder.command import require_tools
from vmbuilder.target import Target

TARGET = "/tmp/target"

# What makes it a VM: installed whatever else is wanted.
BOOTABLE = ("grub-pc", "grub-efi-amd64-bin", "initramfs-tools", "systemd-sysv", "udev", "zstd")
KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}

# What makes it pleasant: the default of the argument `packages`.
PLEASANT = (
    "ca-certificates cloud-init dbus iproute2 iputils-ping less nano netbase openssh-server qemu-guest-agent"
    " sudo tzdata"
).split()
# Parts of systemd that are packages of their own in some releases only.
OPTIONAL = ("systemd-resolved", "systemd-timesyncd")


class VMBuilderScript(VMBuilder):
    """Debian or Ubuntu, installed from the package archive.

    The root disk gets a partition table from which it starts under BIOS and UEFI, all other disks their file
    systems as the storage template says. Console on the first serial port, network by DHCP, cloud-init with
    the profile's user data, no default password: give `root_password_hash`, `ssh_keys` or user data to be
    able to log in.
    """

    api_version = 1
    arguments = (
        Argument("release", pattern=r"[a-z][a-z0-9.-]*", help="codename; default: what the node itself runs"),
        Argument(
            "engine",
            default="mmdebstrap",
            choices=("mmdebstrap", "debootstrap"),
            help="the tool that installs",
        ),
        Argument(
            "mirror",
            pattern=r"https?://[^\s,]+",
            help="package archive; default: as in the node's apt sources",
        ),
        Argument(
            "components",
            type="list",
            pattern=r"[a-z][a-z-]*",
            help="default: as in the node's apt sources, or main",
        ),
        Argument("keyring", pattern=r"/\S+", help="file on the node with the keys that sign the mirror"),
        Argument(
            "kernel",
            pattern=r"[a-z0-9][a-z0-9+.-]*",
            help="package; default: the kernel for virtual machines",
        ),
        Argument("packages", type="list", pattern=r"[a-z0-9][a-z0-9+.:-]*", help="instead of the usual ones"),
        Argument(
            "extra_packages", type="list", pattern=r"[a-z0-9][a-z0-9+.:-]*", help="besides the usual ones"
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
        require_tools([self.arguments["engine"]])
        bootloader.check_tools()
        self.volumes.check()
        self.volumes.check_root()
        self.release = self.arguments["release"] or host_release().codename
        self.distribution = debian.distribution_of(self.release)
        debian.require_keyring(self.distribution, self.arguments["keyring"])
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
        self.progress(f"installing {self.release}")
        if self.arguments["engine"] == "mmdebstrap":
            self.run_mmdebstrap(target)
        else:
            self.run_debootstrap(target)
        with chroot.system_mounts(TARGET):
            self.progress("configuring", 80)
            self.configure(target)
            self.progress("making it bootable", 85)
            self.make_bootable(target)
        self.personalise(target)

    def cleanup(self) -> None:
        """Give the disks back."""
        self.volumes.release()

    def packages(self) -> list[str]:
        """All packages to install, without those that some releases do not have."""
        kernel = self.arguments["kernel"] or KERNELS[self.distribution]
        locales = [] if self.arguments["locale"].startswith(("C.", "POSIX")) else ["locales"]
        chosen = self.arguments["packages"] or PLEASANT
        extra = self.arguments["extra_packages"] or ()
        return sorted({kernel, *BOOTABLE, *chosen, *extra, *locales, *self.volumes.packages()})

    def sources(self) -> list[str]:
        """Lines for sources.list; none: the tool's built-in mirror."""
        wanted = tuple(self.arguments["components"] or ())
        if self.arguments["mirror"]:
            components = wanted or COMPONENTS[self.distribution]
            return [" ".join(("deb", self.arguments["mirror"], self.release, *components))]
        host = host_release()
        if host.distribution != self.distribution:
            return []
        return [source.line(wanted) for source in host_apt_sources(self.release, host)]

    def run_mmdebstrap(self, target: Target) -> None:
        """One run of apt installs everything. unsafe-io: an interrupted build is thrown away anyway."""
        optional = [f"?exact-name({name})" for name in OPTIONAL]
        options = [
            "--mode=root",
            "--variant=minbase",
            "--skip=check/empty",
            "--dpkgopt=force-unsafe-io",
            "--verbose",
        ]
        options += [f"--include={','.join([*self.packages(), *optional])}"]
        options += [f"--components={','.join(self.arguments['components'] or COMPONENTS[self.distribution])}"]
        options += [f"--keyring={self.arguments['keyring']}"] if self.arguments["keyring"] else []
        argv = ["mmdebstrap", *options, self.release, target.root, *self.sources()]
        self.run(argv, env={"INITRD": "No"}, on_line=AptProgress(self.progress, 5, 75).line)
        target.remove("/etc/dpkg/dpkg.cfg.d/99mmdebstrap", "/etc/apt/apt.conf.d/99mmdebstrap")

    def run_debootstrap(self, target: Target) -> None:
        """The base system first, the rest by its own apt. container: so that it makes no device nodes."""
        lines = self.sources()
        keyring = self.arguments["keyring"]
        options = ["--variant=minbase", *([f"--keyring={keyring}"] if keyring else [])]
        mirror = [next(word for word in lines[0].split() if "://" in word)] if lines else []
        self.run(["debootstrap", *options, self.release, target.root, *mirror], env={"container": "lxc"})
        if lines:
            target.write("/etc/apt/sources.list", "".join(f"{line}\n" for line in lines))
        with chroot.system_mounts(target.root), chroot.no_services(target.root):
            apt_progress = AptProgress(self.progress, 30, 75)
            debian.install_packages(target, self.packages(), OPTIONAL, apt_progress.line)

    def configure(self, target: Target) -> None:
        """What is the same for every VM with these arguments."""
        user = self.arguments["user"]
        target.set_locale(self.arguments["locale"])
        target.set_timezone(self.arguments["timezone"])
        target.use_dhcp()
        target.set_logins(
            user=user,
            ssh_keys=self.arguments["ssh_keys"],
            root_password_hash=self.arguments["root_password_hash"],
        )
        if cloud_init.is_installed(target):
            cloud_init.configure(target, user=user)

    def make_bootable(self, target: Target) -> None:
        """File system table, kernel's initial file system, boot loader."""
        target.write_fstab(self.volumes.file_systems())
        debian.make_initramfs(target)
        debian.remember_grub_disk(target, self.volumes.root.disk_id)
        bootloader.configure(target)
        bootloader.install_bios(target, self.volumes)
        bootloader.install_uefi(target, self.volumes)
        bootloader.write_menu(target)

    def personalise(self, target: Target) -> None:
        """What makes it this VM and no other."""
        target.set_hostname(self.vm_name)
        target.reset_identity()
        seed = {"instance_id": str(self.vm_uuid), "hostname": self.vm_name, "userdata": self.userdata}
        cloud_init.write_seed_if_installed(target, **seed)
