"""Things done to a mounted root directory to make it this VM's system.

Files are written from outside; a program of the guest is run in a chroot only where nothing else will do.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmbuilder import filesystem
from vmbuilder.command import run
from vmbuilder.errors import ProvisioningError, ValidationError
from vmbuilder.volumes import SWAP, FileSystem

_CHROOT_TIMEOUT_S: Final = 300

# Ours instead of systemd's: cloud-init and the login prompt wait for that one, on a VM without a network for
# minutes.
_NETWORK_ONLINE_UNIT: Final = """\
[Unit]
Description=Wait up to half a minute for a network
Documentation=man:systemd-networkd-wait-online.service(8)
DefaultDependencies=no
Conflicts=shutdown.target
After=systemd-networkd.service
Requires=systemd-networkd.service
Before=network-online.target shutdown.target

[Service]
Type=oneshot
ExecStart=-{program} --any --timeout=30
RemainAfterExit=yes

[Install]
WantedBy=network-online.target
"""
_WAIT_ONLINE: Final = (
    "/usr/lib/systemd/systemd-networkd-wait-online",
    "/lib/systemd/systemd-networkd-wait-online",
)
_NETWORK_ONLINE_NAME: Final = "first-network-online.service"

_DHCP_NETWORK: Final = """\
[Match]
Name=en* eth*

[Network]
DHCP=yes

[DHCPv4]
ClientIdentifier=mac
"""

# Every wired interface, however many there are and whatever they are called (nm-settings-keyfile(5)).
_NETWORK_MANAGER_PROFILE: Final = """\
[connection]
id=dhcp
type=ethernet
multi-connect=3

[ipv4]
method=auto
dhcp-client-id=mac

[ipv6]
method=auto
"""

# Host keys given by cloud-init's user data come first; the rest is made here, beside the start of everything
# else. ssh-keygen makes RSA first and Ed25519 last: a guest that was stopped between the two goes on later.
_HOST_KEYS_UNIT: Final = """\
[Unit]
Description=Make the SSH host keys of a new VM
ConditionFileIsExecutable=/usr/bin/ssh-keygen
ConditionPathExists=|!/etc/ssh/ssh_host_rsa_key
ConditionPathExists=|!/etc/ssh/ssh_host_ed25519_key
After=cloud-init.service cloud-init-network.service
Before=ssh.service sshd.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
"""
_HOST_KEYS_NAME: Final = "ssh-host-keys.service"

_HOSTS: Final = """\
127.0.0.1\tlocalhost
127.0.1.1\t{name}

::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


@dataclass(frozen=True)
class Account:
    """What the target's /etc/passwd says about a user."""

    uid: int
    gid: int
    home: str


class Target:
    """A mounted root directory. Every method may be called again; the last call counts."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        """The place of an absolute path of the target, seen from here."""
        return self.root / name.lstrip("/")

    def run(self, argv: Sequence[str], *, input: str | None = None, secrets: Iterable[str] = ()) -> None:  # noqa: A002
        """Run one of the target's own programs; see vmbuilder.chroot for what it may need mounted."""
        run(argv, chroot=self.root, input=input, timeout_s=_CHROOT_TIMEOUT_S, secrets=secrets)

    def has(self, name: str) -> bool:
        """Whether the target has that file (a link counts, wherever it points)."""
        return os.path.lexists(self.path(name))

    def read_text(self, name: str, limit_bytes: int = 1024**2) -> str:
        """A file's text; empty for what is missing, is no plain file (a pipe would block), or too large."""
        try:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ""
        with open(descriptor, "rb") as stream:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_size > limit_bytes:
                return ""
            return stream.read(limit_bytes).decode(errors="replace")

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Write a whole file, making its directories. A link of that name is replaced, never followed."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode=mode)
        path.chmod(mode)
        path.write_text(text)

    def link(self, name: str, to: str) -> None:
        """Make `name` a symbolic link."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    def remove(self, *names: str) -> None:
        """Remove files, which may be patterns such as /etc/ssh/ssh_host_*; missing ones are fine."""
        for name in names:
            for path in self.root.glob(name.lstrip("/")):
                path.unlink()

    # What the system is called and who it is.

    def set_hostname(self, name: str) -> None:
        """Set the host name, and its own address in /etc/hosts."""
        self.write("/etc/hostname", f"{name}\n")
        self.write("/etc/hosts", _HOSTS.format(name=name))

    def reset_identity(self) -> None:
        """Forget what must not be shared between VMs; the guest makes it anew when it first boots.

        The machine id is emptied rather than removed: then systemd takes it from the VM's UUID and does not
        believe it is a first boot in which every unit's preset has to be applied.
        """
        self.write("/etc/machine-id", "", mode=0o444)
        self.remove("/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed", "/etc/ssh/ssh_host_*_key*")
        own = self.has(
            "/usr/lib/systemd/system/sshd-keygen@.service"
        )  # RPM distributions make them themselves
        if self.has("/usr/bin/ssh-keygen") and not own:
            self.write(f"/etc/systemd/system/{_HOST_KEYS_NAME}", _HOST_KEYS_UNIT)
            self._want(_HOST_KEYS_NAME, "multi-user.target")

    def set_locale(self, locale: str) -> None:
        """Set the system's language, making the locale first where the C library does not bring it."""
        if locale.partition(".")[0] not in ("C", "POSIX"):
            if not self.has("/usr/sbin/locale-gen"):
                raise ProvisioningError(f"locale {locale}: the target lacks the package locales")
            charset = locale.partition(".")[2].partition("@")[0] or "ISO-8859-1"
            self.write("/etc/locale.gen", f"{locale} {charset}\n")
            self.run(["locale-gen"])
        self.write("/etc/default/locale", f"LANG={locale}\n")

    def set_timezone(self, name: str) -> None:
        """Set the time zone, such as Europe/Vienna."""
        zone = f"/usr/share/zoneinfo/{name}"
        if ".." in Path(name).parts or not self.path(zone).is_file():
            raise ValidationError(f"time zone {name} is not in the target's tzdata")
        self.link("/etc/localtime", zone)
        self.write("/etc/timezone", f"{name}\n")

    # Who may log in.

    def set_password_hash(self, user: str, password_hash: str) -> None:
        """Set a password by its crypt(5) hash, which goes neither through argv nor into the log."""
        if ":" in password_hash or "\n" in password_hash:
            raise ValidationError("a password hash holds neither a colon nor a newline; see crypt(5)")
        self.run(["chpasswd", "-e"], input=f"{user}:{password_hash}\n", secrets=[password_hash])

    def set_logins(
        self, *, user: str | None, ssh_keys: Sequence[str] | None, root_password_hash: str | None
    ) -> None:
        """Let in these and nobody else: an administrator, if one is named, SSH keys for that one or else for
        root, and root with a password, if there is a hash.
        """
        self.lock_password("root")
        if root_password_hash:
            self.set_password_hash("root", root_password_hash)
        if user:
            self.add_administrator(user)
        if ssh_keys:
            self.authorize_keys(user or "root", ssh_keys)

    def lock_password(self, user: str) -> None:
        """Make logging in with a password impossible."""
        self.run(["usermod", "--lock", user])

    def add_administrator(self, name: str) -> None:
        """Add a user (if there is none of the name) who may become root without a password."""
        if self._account_or_none(name) is None:
            groups = self.path("/etc/group").read_text().splitlines()
            existing = any(
                line.startswith(f"{name}:") for line in groups
            )  # such as Debian's group "operator"
            group = ["--gid", name] if existing else ["--user-group"]
            self.run(["useradd", "--create-home", "--shell", "/bin/bash", *group, name])
        self.write(f"/etc/sudoers.d/90-{name}", f"{name} ALL=(ALL) NOPASSWD:ALL\n", mode=0o440)

    def authorize_keys(self, user: str, keys: Sequence[str]) -> None:
        """Let these SSH keys log in as `user`, and no others."""
        account = self._account_or_none(user)
        if account is None:
            raise ProvisioningError(f"user {user} does not exist in the target")
        if any("\n" in key or len(key.split()) < 2 for key in keys):
            raise ValidationError("an SSH key is one line: type, key, comment")
        directory = f"{account.home}/.ssh"
        self.path(directory).mkdir(parents=True, exist_ok=True)
        self.path(directory).chmod(0o700)
        self.write(f"{directory}/authorized_keys", "".join(f"{key}\n" for key in keys), mode=0o600)
        for path in (directory, f"{directory}/authorized_keys"):
            os.chown(self.path(path), account.uid, account.gid)

    def _account_or_none(self, name: str) -> Account | None:
        for line in self.path("/etc/passwd").read_text().splitlines():
            user, _, uid, gid, _, home, *_ = [*line.split(":"), *[""] * 6]  # FreeBSD has comments there
            if user == name:
                return Account(int(uid), int(gid), home)
        return None

    # Disks and network.

    def write_fstab(self, file_systems: Sequence[FileSystem]) -> None:
        """Write /etc/fstab, and make the mount points."""
        self.write("/etc/fstab", fstab(file_systems))
        for item in file_systems:
            if item.mountpoint:
                self.path(item.mountpoint).mkdir(parents=True, exist_ok=True)

    def use_dhcp(self) -> None:
        """Every network interface asks for its address by systemd-networkd; booting does not wait."""
        program = next((name for name in _WAIT_ONLINE if self.has(name)), None)
        if program is None:
            raise ProvisioningError("the target has no systemd-networkd to get an address with")
        self.write("/etc/systemd/network/80-dhcp.network", _DHCP_NETWORK)
        self.run(["systemctl", "--quiet", "enable", "systemd-networkd.service"])
        self.link("/etc/systemd/system/systemd-networkd-wait-online.service", "/dev/null")
        unit = _NETWORK_ONLINE_UNIT.format(program=program)
        self.write(f"/etc/systemd/system/{_NETWORK_ONLINE_NAME}", unit)
        self._want(_NETWORK_ONLINE_NAME, "network-online.target")
        if any(self.has(f"{place}/systemd/systemd-resolved") for place in ("/lib", "/usr/lib")):
            self.link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")

    def use_network_manager(self) -> None:
        """Every wired interface asks for its address by NetworkManager."""
        if not self.has("/usr/sbin/NetworkManager"):
            raise ProvisioningError("the target has no NetworkManager to get an address with")
        self.write(
            "/etc/NetworkManager/system-connections/dhcp.nmconnection", _NETWORK_MANAGER_PROFILE, 0o600
        )
        self.run(["systemctl", "--quiet", "enable", "NetworkManager.service"])
        self.remove("/etc/resolv.conf")  # NetworkManager writes its own; ours was the build's

    def copy_resolver(self) -> None:
        """Give programs run in the target the sandbox's name servers; reset by use_dhcp()."""
        self.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())

    def copy_in(self, source: str | os.PathLike[str], name: str) -> None:
        """Copy a file of the sandbox into the target."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, self.path(name))

    def _want(self, unit: str, by: str) -> None:
        """Enable a unit of /etc/systemd/system."""
        self.link(f"/etc/systemd/system/{by}.wants/{unit}", f"/etc/systemd/system/{unit}")


def fstab(file_systems: Sequence[FileSystem]) -> str:
    """The text of fstab(5): by identifier, outer mount points first, the root checked first, swap last."""
    lines = ["# <file system> <mount point> <type> <options> <dump> <pass>"]
    for item in file_systems:
        kind = filesystem.kind_of(item.kind)
        is_root = item.mountpoint == "/"
        options = kind.root_options if is_root else kind.options
        passno = 1 if is_root and kind.passno else kind.passno
        place = "none" if item.kind == SWAP else _escaped(item.mountpoint or "none")
        lines.append(f"UUID={item.identifier} {place} {item.kind} {options} 0 {passno}")
    return "\n".join(lines) + "\n"


def _escaped(path: str) -> str:
    """A path as fstab(5) has it: blanks and backslashes in octal."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in path)
