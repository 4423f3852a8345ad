"""A tiny RPM distribution, made on the spot: real packages of Debian's own programs under the names that RPM
distributions use, signed, with an index. Small enough to be installed in seconds, and GRUB in it works.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KERNEL = "6.1.0-tiny"
MENU_TITLE = "Tiny Linux"
SIGNER = "Tiny Linux <packages@tiny.invalid>"
BUSYBOX = "/usr/bin/busybox"

_DIRECTORIES = (
    "boot dev etc home proc root run srv sys tmp usr/bin usr/lib usr/lib64 usr/sbin var/lib var/log var/tmp"
)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_MODES = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o550, "/proc": 0o555, "/sys": 0o555}
_CORE = (
    "/bin/sh bash coreutils dnf e2fsprogs glibc openssh-server passwd rocky-release shadow-utils"
    " sudo systemd tzdata util-linux xfsprogs"
)
_OWN_PROGRAMS = ("busybox", "chpasswd", "rpm", "rpm2cpio")
_ACCOUNTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:81:81::/var/lib/web:/sbin/nologin\n",
    "/etc/group": "root:x:0:\nweb:x:81:\n",
    "/etc/shadow": "root:*:19000:0:99999:7:::\nweb:!:19000::::::\n",
    "/etc/login.defs": "UID_MIN 1000\nGID_MIN 1000\nCREATE_HOME yes\n",
}
_NETWORK_MANAGER_UNIT = """\
[Unit]
Description=Network Manager
[Service]
ExecStart=/usr/sbin/NetworkManager
[Install]
WantedBy=multi-user.target
"""
# GRUB asks `udevadm info --query path --name DEVICE` where in /sys a partition is.
_UDEVADM = """\
#!/bin/sh
for device; do :; done
set -- $(stat -L -c '%t %T' "$device")
path=$(readlink -f "/sys/dev/block/$((0x$1)):$((0x$2))")
echo "${path#/sys}"
"""
# What kernel-install(8) does for a kernel, in the words of the Boot Loader Specification.
_KERNEL_SCRIPT = f"""\
mkdir -p /boot/loader/entries
cat >/boot/loader/entries/tiny-{KERNEL}.conf <<EOF
title {MENU_TITLE}
version {KERNEL}
linux /boot/vmlinuz-{KERNEL}
initrd /boot/initramfs-{KERNEL}.img
options $(cat /etc/kernel/cmdline)
EOF
"""
_HEAD = """\
Name: filesystem
Version: 1
Release: 1
Summary: Directories
License: None
AutoReqProv: no
%description
Directories.
%install
cp -a {stage}/. %{{buildroot}}
"""
# Debian's programs keep what they are: nothing is stripped or compiled.
_DEFINES = {
    "_binary_payload": "w1.gzdio",
    "debug_package": "%{nil}",
    "__os_install_post": "%{nil}",
    "_build_id_links": "none",
    "_unpackaged_files_terminate_build": "0",
}


@dataclass
class Package:
    """A package: its files by their absolute path, from a file of this machine (a path) or a text."""

    name: str
    provides: str = ""
    requires: str = ""
    files: dict[str, Path | str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)


def build(directory: Path, work: Path) -> Path:
    """Make the repository in `directory`; returns the file with the key its packages are signed with."""
    packages = [_filesystem(), _base(), _network_manager(), _grub(), _kernel(), _policy()]
    _rpmbuild(packages, directory, work)
    key = _sign(directory, work / "gpg")
    subprocess.run(["createrepo_c", "--quiet", directory], check=True)
    return key


def _filesystem() -> Package:
    modes = {path: f"%attr({mode:o},root,root)" for path, mode in _MODES.items()}
    modes |= {
        path: f"%attr({0 if path == '/etc/shadow' else 0o644:o},root,root) %config" for path in _ACCOUNTS
    }
    links = {f"/{name}": target for name, target in _LINKS.items()}
    places = tuple(f"/{name}" for name in _DIRECTORIES.split())
    return Package("filesystem", files={**_ACCOUNTS}, links=links, directories=places, attributes=modes)


def _base() -> Package:
    applets = subprocess.check_output([BUSYBOX, "--list"], text=True).split()
    links = {f"/usr/bin/{name}": "busybox" for name in applets if name not in _OWN_PROGRAMS}
    users = ("/usr/sbin/usermod", "/usr/sbin/useradd", "/usr/sbin/chpasswd")
    files = carried(*users, "/usr/bin/systemctl", "/usr/bin/rpm")
    files |= {path: Path(path) for path in ("/usr/lib/rpm/macros", "/usr/lib/rpm/rpmrc")}
    files["/etc/rpm/macros"] = "%_dbpath /var/lib/rpm\n"
    files |= {
        "/usr/bin/busybox": Path(BUSYBOX),
        "/usr/bin/low-port": Path(BUSYBOX),
        "/usr/bin/udevadm": _UDEVADM,
        "/var/lib/web/page": "hello\n",
    }
    files |= {"/usr/share/zoneinfo/Europe/Vienna": Path("/usr/share/zoneinfo/Europe/Vienna").resolve()}
    attributes = {
        "/usr/bin/low-port": "%attr(4755,root,root) %caps(cap_net_bind_service=ep)",
        "/usr/bin/udevadm": "%attr(755,root,root)",
        "/var/lib/web/page": "%attr(640,web,web)",
    }
    script = 'echo "uid $(id -u)" >/var/lib/web/post-ran\n'
    return Package("tiny-base", _CORE, "filesystem", files, links, (), attributes, {"post": script})


def _network_manager() -> Package:
    files: dict[str, Path | str] = {"/usr/sbin/NetworkManager": "#!/bin/sh\n"}
    files["/usr/lib/systemd/system/NetworkManager.service"] = _NETWORK_MANAGER_UNIT
    modes = {"/usr/sbin/NetworkManager": "%attr(755,root,root)"}
    return Package("NetworkManager", requires="tiny-base", files=files, attributes=modes)


def _grub() -> Package:
    """Debian's GRUB keeps its files in /boot/grub, so that is a link here."""
    programs = (
        "/usr/bin/grub-mkrelpath",
        "/usr/bin/grub-script-check",
        "/usr/sbin/grub-probe",
        "/usr/bin/grub-editenv",
    )
    renamed = {
        "/usr/sbin/grub-install": "/usr/sbin/grub2-install",
        "/usr/sbin/grub-mkconfig": "/usr/sbin/grub2-mkconfig",
    }
    files = {renamed.get(path, path): source for path, source in carried(*programs, *renamed).items()}
    modules = Path("/usr/lib/grub/i386-pc").iterdir()
    files |= {str(path): path for path in modules}
    files |= {str(path): path for path in Path("/etc/grub.d").iterdir() if path.name[:2] in ("00", "10")}
    files["/usr/share/grub/grub-mkconfig_lib"] = Path("/usr/share/grub/grub-mkconfig_lib")
    files["/etc/os-release"] = f'NAME="{MENU_TITLE}"\nID=rocky\n'
    program = Path("/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi")
    files |= {"/boot/efi/EFI/debian/grubx64.efi": program, "/boot/efi/EFI/BOOT/BOOTX64.EFI": program}
    provides = "grub2-efi-x64 grub2-pc shim-x64 dracut"
    return Package("grub2-tools", provides, "tiny-base", files, {"/boot/grub": "grub2"}, ("/boot/grub2",))


def _kernel() -> Package:
    """A kernel only GRUB's menu sees: nothing here starts it."""
    files = {f"/boot/vmlinuz-{KERNEL}": "kernel", f"/boot/initramfs-{KERNEL}.img": "initial"}
    files[f"/usr/lib/modules/{KERNEL}/modules.dep"] = ""
    return Package("kernel", "", "tiny-base", {**files}, scripts={"posttrans": _KERNEL_SCRIPT})


def _policy() -> Package:
    files: dict[str, Path | str] = {"/etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n"}
    return Package("selinux-policy-targeted", requires="tiny-base", files=files)


def carried(*programs: str) -> dict[str, Path | str]:
    """Programs of this machine with the libraries they need, at their places in /usr."""
    found = {path: Path(path) for path in programs}
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for path in (word for word in listed.split() if word.startswith("/")):
            found[path if path.startswith("/usr/") else f"/usr{path}"] = Path(path)
    return {path: source.resolve() for path, source in found.items()}


def _rpmbuild(packages: Iterable[Package], directory: Path, work: Path) -> None:
    stage = work / "stage"
    text = _HEAD.format(stage=stage)
    for number, package in enumerate(packages):
        listed = _stage(package, stage)
        option = f"-n {package.name}" if number else ""
        if number:
            text += f"%package {option}\nSummary: {package.name}\nAutoReqProv: no\n"
            text += f"Requires: {package.requires}\n" + (
                f"Provides: {package.provides}\n" if package.provides else ""
            )
            text += f"%description {option}\n{package.name}.\n"
        for name, script in package.scripts.items():
            text += f"%{name} {option}\n{script}"
        text += f"%files {option}\n%defattr(-,root,root,-)\n{listed}"
    spec = work / "tiny.spec"
    spec.write_text(text)
    defines = [word for pair in _DEFINES.items() for word in ("--define", " ".join(pair))]
    defines += ["--define", f"_topdir {work}/rpmbuild", "--define", f"_rpmdir {directory}"]
    argv = ["rpmbuild", "--quiet", "-bb", "--target", "x86_64", *defines, spec]
    done = subprocess.run(argv, capture_output=True, text=True, env=_environment(work), check=False)
    assert done.returncode == 0, done.stderr


def _stage(package: Package, stage: Path) -> str:
    """Put a package's files into the common tree; returns its lines of %files."""
    lines = []
    for name in package.directories:
        (stage / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
        lines.append(f"%dir {package.attributes.get(name, '')} {name}")
    for name, target in package.links.items():
        (stage / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (stage / name.lstrip("/")).symlink_to(target)
        lines.append(name)
    for name, content in package.files.items():
        path = stage / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, path)
        else:
            path.write_text(content)
        mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        lines.append(f"{package.attributes.get(name) or f'%attr({mode:o},root,root)'} {name}")
    return "".join(f"{line}\n" for line in lines)


def _sign(directory: Path, home: Path) -> Path:
    """Sign all packages with a new key; returns its public half, beside them."""
    home.mkdir(mode=0o700, parents=True)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase="]
    environment = _environment(home)
    try:
        subprocess.run(
            [*gpg, "--quick-gen-key", SIGNER, "rsa2048", "sign", "never"], check=True, env=environment
        )
        values = {"_gpg_name": SIGNER, "_gpg_path": home, "__gpg": shutil.which("gpg")}
        macros = [word for name, value in values.items() for word in ("--define", f"{name} {value}")]
        files = sorted(directory.rglob("*.rpm"))
        assert files
        argv = ["rpmsign", "--addsign", *macros, *files]
        subprocess.run(argv, check=True, env=environment, stdout=subprocess.DEVNULL)
        key = directory / "RPM-GPG-KEY-tiny"
        key.write_bytes(subprocess.check_output([*gpg, "--armor", "--export", SIGNER], env=environment))
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True, env=environment)
    return key


def _environment(home: Path) -> Mapping[str, str]:
    """Nothing of the developer's own rpm and gpg settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
