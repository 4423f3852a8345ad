"""The configuration files of a stack's daemons: one for the node daemon and root, one for the API's user."""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from devstack import ceph, libvirt
from devstack.state import State, numbered, write_private

POOL = "vms"
API_USER = "nobody"
SECRETS = ("database", "queue")


def node_name(node: int) -> str:
    return f"hv{node}"


def write_configuration(state: State) -> None:
    """Write the API's file and each node's, and the API's own copies of the secrets; safe to repeat."""
    secrets = {name: state.secret(name) for name in SECRETS}
    account = pwd.getpwnam(API_USER)
    owner = (account.pw_uid, account.pw_gid)
    own = state / "api"
    own.mkdir(mode=0o700, exist_ok=True)
    os.chown(own, *owner)
    for name, secret in secrets.items():
        write_private(own / f"{name}.password", f"{secret}\n", owner)
    write_private(own / "pvc.conf", _text(document(state, str(own))), owner)
    for node in range(1, state.nodes + 1):
        pool = pool_directory(state, node)
        for directory in (pool.parent, pool, state / numbered("node", node)):
            directory.mkdir(mode=0o711, exist_ok=True)
        write_private(state.node_configuration(node), _text(document(state, str(state.path), node)))


def document(state: State, secrets: str, node: int = 1) -> dict[str, Any]:
    """A node's configuration, with password files in the directory `secrets`, and the stack's overrides."""
    settings = state.settings()
    ports = settings["ports"]
    generated = {
        "cluster": {"name": "dev"},
        "node": {"name": node_name(node)},
        "database": {"port": ports["postgresql"], "password_file": f"{secrets}/database.password"},
        "queue": {"port": ports["redis"], "password_file": f"{secrets}/queue.password"},
        "api": {
            "listen": {"address": "127.0.0.1", "port": ports["api"]},
            "authentication": {"token_file": str(state.token_file)},
        },
        "hypervisor": {
            "libvirt_uri": libvirt.uri(state, node),
            "console_directory": str(libvirt.console_directory(state, node)),
        },
        "sandbox": {"hidden_paths": [str(state.path)]},
        "storage": {"pools": {POOL: pool_settings(state, node)}, **made_pools_settings(state)},
        "networks": {"upstream": {"user": True}},
        "state_directory": str(state / numbered("node", node)),
    }
    return merged(generated, settings["overrides"])


def pool_directory(state: State, node: int) -> Path:
    return state / numbered("pools", node) / POOL


def pool_settings(state: State, node: int) -> dict[str, str]:
    """The pool `vms`: a directory of the node's own, or the RBD pool of the stack's Ceph, which all share."""
    if state.pool_kind == "directory":
        return {"driver": "directory", "path": str(pool_directory(state, node))}
    own = {"ceph_conf": str(ceph.conf(state)), "ceph_keyring": str(ceph.keyring(state))}
    return {"driver": "rbd", "ceph_pool": ceph.POOL, "ceph_user": ceph.CLIENT, **own}


def made_pools_settings(state: State) -> dict[str, dict[str, str]]:
    """How the nodes reach pools made through the API, and make them."""
    if state.pool_kind == "directory":
        return {}
    own = {"ceph_conf": str(ceph.conf(state)), "ceph_keyring": str(ceph.keyring(state))}
    manager = {
        "manager_user": ceph.MANAGER,
        "manager_keyring": str(ceph.keyring(state, f"client.{ceph.MANAGER}")),
    }
    return {"ceph": {"ceph_user": ceph.CLIENT, **own, **manager}}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, section by section."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _text(content: Mapping[str, Any]) -> str:
    return (
        "# Written by dev/stack up; change it with `dev/stack up --set SECTION.KEY=VALUE`.\n"
        + yaml.safe_dump(dict(content), sort_keys=False)
    )
