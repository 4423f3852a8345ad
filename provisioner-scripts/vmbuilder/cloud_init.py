"""Configuring cloud-init in a target: its data lies on the root disk (NoCloud), so it needs no network.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmbuilder.errors import ValidationError
from vmbuilder.target import Target

NOCLOUD_LABEL: Final = "CIDATA"  # of a CD-ROM with its data; looked for in small or capital letters
_SEED: Final = "/var/lib/cloud/seed/nocloud"
_CONFIG: Final = "/etc/cloud/cloud.cfg.d/90_builder.cfg"
_SOURCES: Final = "/etc/cloud/cloud.cfg.d/91_seed.cfg"
_SWITCHED_OFF: Final = "/etc/cloud/cloud-init.disabled"
_SUDO: Final = "ALL=(ALL) NOPASSWD:ALL"
_NO_USERDATA: Final = "#cloud-config\n{}\n"
# What it remembers of an instance, below /var/lib/cloud; and what it has written for that one's network card.
_STATE: Final = ("instance", "instances", "data", "sem", "handlers", "seed")
_RENDERED: Final = (
    "/etc/netplan/50-cloud-init.yaml",
    "/etc/network/interfaces.d/50-cloud-init*",
    "/etc/systemd/network/10-cloud-init-*.network",
    "/etc/NetworkManager/system-connections/cloud-init-*.nmconnection",
)


@dataclass(frozen=True)
class Instance:
    """What cloud-init is told of the VM. A new id makes it do its once-per-instance work again."""

    id: str
    hostname: str
    userdata: str | None = None

    def files(self) -> dict[str, str]:
        """The files of NoCloud by name."""
        metadata = {"instance-id": self.id, "local-hostname": self.hostname}
        return {"meta-data": json.dumps(metadata) + "\n", "user-data": self.userdata or _NO_USERDATA}


def is_installed(target: Target) -> bool:
    """Whether the target has cloud-init."""
    return target.has("/usr/bin/cloud-init")


def configure(target: Target, *, user: str | None = None) -> None:
    """Set what is the same for every VM built from this target.

    Network and SSH host keys are the target's own business (see Target.use_dhcp and Target.reset_identity).
    `user` is the one who gets the keys of user data that names none; without it, that is the distribution's
    default user.
    """
    settings: dict[str, Any] = {
        "datasource_list": ["NoCloud", "None"],
        "network": {"config": "disabled"},
        "ssh_deletekeys": False,
        # At least one is demanded; this one is quick to make.
        "ssh_genkeytypes": ["ed25519"],
        "disable_root": False,
    }
    if user:
        default = {"name": user, "lock_passwd": True, "shell": "/bin/bash", "sudo": [_SUDO]}
        settings["system_info"] = {"default_user": default}
    # JSON is YAML; this way nothing has to be quoted by hand.
    target.write(
        _CONFIG, f"#cloud-config\n# Written when this VM was built.\n{json.dumps(settings, indent=2)}\n"
    )


def write_seed(target: Target, *, instance_id: str, hostname: str, userdata: str | None) -> None:
    """Write the VM's own data.

    Without user data there is nothing for it to do, and it is switched off: logging in would wait for it.
    """
    _write_files(target, Instance(instance_id, hostname, userdata))
    if userdata:
        target.remove(_SWITCHED_OFF)
    else:
        target.write(
            _SWITCHED_OFF, "This VM was built without user data. Remove this file to use cloud-init.\n"
        )


def write_seed_if_installed(target: Target, *, instance_id: str, hostname: str, userdata: str | None) -> None:
    """write_seed() where there is cloud-init; raises ValidationError for user data that nobody would read."""
    if is_installed(target):
        write_seed(target, instance_id=instance_id, hostname=hostname, userdata=userdata)
    elif userdata:
        raise ValidationError(
            "the profile has user data, but package cloud-init is not among those installed"
        )


def renew(target: Target, instance: Instance) -> None:
    """Have the cloud-init of a system that ran before begin anew, with this VM's data.

    It stays switched on without user data, too: network and users may be its business in this system.
    """
    for name in _STATE:
        _remove_tree(target.path(f"/var/lib/cloud/{name}"))
    target.remove(_SWITCHED_OFF, *_RENDERED)
    sources = {"datasource_list": ["NoCloud", "None"]}
    target.write(_SOURCES, f"#cloud-config\n# Written when this VM was built.\n{json.dumps(sources)}\n")
    _write_files(target, instance)


def _write_files(target: Target, instance: Instance) -> None:
    for name, text in instance.files().items():
        target.write(f"{_SEED}/{name}", text, mode=0o600)


def _remove_tree(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a whole directory; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
