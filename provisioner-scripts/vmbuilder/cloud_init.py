"""Configuring cloud-init in a target: its data lies on the root disk (NoCloud), so it needs no network.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

import json
from typing import Any, Final

from vmbuilder.target import Target

_SEED: Final = "/var/lib/cloud/seed/nocloud"
_CONFIG: Final = "/etc/cloud/cloud.cfg.d/90_builder.cfg"
_SWITCHED_OFF: Final = "/etc/cloud/cloud-init.disabled"
_SUDO: Final = "ALL=(ALL) NOPASSWD:ALL"
_NO_USERDATA: Final = "#cloud-config\n{}\n"


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
    """Write the VM's own data. A new instance id makes cloud-init do its once-per-instance work again.

    Without user data there is nothing for it to do, and it is switched off: logging in would wait for it.
    """
    metadata = {"instance-id": instance_id, "local-hostname": hostname}
    target.write(f"{_SEED}/meta-data", json.dumps(metadata) + "\n", mode=0o600)
    target.write(f"{_SEED}/user-data", userdata or _NO_USERDATA, mode=0o600)
    if userdata:
        target.remove(_SWITCHED_OFF)
    else:
        target.write(
            _SWITCHED_OFF, "This VM was built without user data. Remove this file to use cloud-init.\n"
        )
