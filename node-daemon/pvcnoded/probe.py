"""What this hypervisor can do: asked once at start, shown by `pvc node info` and `pvc-node check`."""

import os
import platform
import shutil
from pathlib import Path

from pvccommon import names
from pvccommon.config import Config
from pvccommon.models import Json

MIB = 1024**2
CPU_FLAGS = {"vmx", "svm"}


def probe_capabilities(config: Config) -> Json:
    """{domain {type, machine, cpu_mode, firmware}, vcpus, firmware […], kvm {usable, reason}, cgroup2}."""
    usable, reason = probe_kvm()
    wanted = config.hypervisor.domain_type
    kind = ("kvm" if usable else "qemu") if wanted == "auto" else wanted
    return {
        "domain": {
            "type": kind,
            "machine": "q35",
            "cpu_mode": "host-passthrough" if kind == "kvm" else "maximum",
            "firmware": config.hypervisor.firmware,
        },
        "vcpus": os.cpu_count() or 1,
        "firmware": ["bios", *(["uefi"] if Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() else [])],
        "kvm": {"usable": usable, "reason": reason},
        "cgroup2": Path("/sys/fs/cgroup/cgroup.controllers").exists(),
    }


def probe_kvm() -> tuple[bool, str]:
    """Whether guests can use hardware virtualisation, and why (not).

    The device alone is not enough: a nested machine may offer /dev/kvm while its CPU cannot run guests.
    """
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return False, f"/dev/kvm does not open: {exc.strerror}"
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    )
    if not CPU_FLAGS & set(flags.split()):
        return False, "the CPU shows neither vmx nor svm"
    return True, "/dev/kvm opens and the CPU has it"


def probe_filesystems() -> list[str]:
    """File systems this node can make."""
    programs = {name: "mkswap" if name == "swap" else f"mkfs.{name}" for name in names.FILESYSTEMS}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name, program in programs.items() if shutil.which(program, path=path)]


def probe_networks(config: Config) -> Json:
    """{vni: {bridge, user, present}} of the configured networks."""
    found = {}
    for vni, network in config.networks.items():
        bridge = None if network.user else network.bridge or names.bridge_name(vni)
        present = network.user or Path(f"/sys/class/net/{bridge}/bridge").is_dir()
        found[vni] = {"bridge": bridge, "user": network.user, "present": present}
    return found


def memory_mib() -> tuple[int, int]:
    """(total, available) from /proc/meminfo, which counts in KiB."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) // 1024
    return values["MemTotal"], values["MemAvailable"]


def system_words() -> dict[str, str]:
    release = platform.freedesktop_os_release()
    return {
        "kernel": platform.release(),
        "os": release.get("PRETTY_NAME", "Linux"),
        "architecture": platform.machine(),
    }
