"""The configuration file: one YAML document, typed, every key documented, unknown keys refused.

The classes below are the whole definition: names, types, defaults and documentation. `load_config` reads
a file against them; `describe` yields the rows of docs/configuration.md.
"""

import difflib
import ipaddress
import os
import re
import socket
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

from pvccommon.errors import EnvironmentFault, Problem, WrongInput

DEFAULT_PATH = "/etc/pvc/pvc.conf"
PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def key(doc: str, default: Any = MISSING, factory: Any = MISSING) -> Any:
    """A documented configuration key."""
    return field(default=default, default_factory=factory, metadata={"doc": doc})


def short_host_name() -> str:
    return socket.gethostname().split(".")[0]


@dataclass(frozen=True)
class Cluster:
    name: str = key("Name of the cluster, shown by `pvc cluster status`.", "pvc")


@dataclass(frozen=True)
class Node:
    name: str = key(
        "Name of this node; its queue is `node.<name>`. Default: the short host name.",
        factory=short_host_name,
    )
    heartbeat_s: int = key("Seconds between two reports of this node's state.", 5)
    dead_after_s: int = key(
        "A node that has not reported for so many seconds is taken for dead: its builds move to other nodes. "
        "The same on all machines.",
        30,
    )
    reserved_memory_mib: int = key("Memory kept free for the hypervisor itself when VMs are placed.", 512)
    transfer_address: str = key(
        "Address of this node on which it takes uploads from the API and gives downloads to it; the API must "
        "reach it. Not a wildcard.",
        "127.0.0.1",
    )
    transfer_ports: str | None = key(
        "Ports for that, such as `7400-7409`. Default: any free one, which no firewall may block.",
        None,
    )
    transfers: int = key("Uploads and downloads at one time on this node.", 4)

    @property
    def dead_after(self) -> timedelta:
        return timedelta(seconds=self.dead_after_s)


@dataclass(frozen=True)
class Database:
    host: str = key("PostgreSQL server.", "127.0.0.1")
    port: int = key("Its port.", 5432)
    name: str = key("Name of the database.", "pvc")
    user: str = key("Role to connect as.", "pvc")
    password_file: str = key(
        "File with the password; must not be readable by others.", "/etc/pvc/database.password"
    )


@dataclass(frozen=True)
class Queue:
    host: str = key("Redis server.", "127.0.0.1")
    port: int = key("Its port.", 6379)
    database: int = key("Number of the Redis database.", 0)
    password_file: str = key(
        "File with the password; must not be readable by others.", "/etc/pvc/queue.password"
    )
    visibility_timeout_s: int = key("Seconds after which Redis delivers an unacknowledged task again.", 3600)


@dataclass(frozen=True)
class Listen:
    address: str = key("Address the API listens on.", "127.0.0.1")
    port: int = key("Its port.", 7370)


@dataclass(frozen=True)
class Ssl:
    enabled: bool = key("Serve https.", False)
    certificate: str | None = key("Certificate chain (PEM).", None)
    key: str | None = key("Private key (PEM).", None)


@dataclass(frozen=True)
class Authentication:
    enabled: bool = key("Demand an API token. Can be switched off on loopback only.", True)
    anonymous_role: Literal["viewer", "operator", "admin"] | None = key(
        "Role of a caller without a token; honoured only when the API listens on loopback.", None
    )
    token_file: str | None = key("File with the token `pvc` uses for the connection named `local`.", None)


@dataclass(frozen=True)
class Api:
    listen: Listen = key("Where the API listens.", factory=Listen)
    ssl: Ssl = key("TLS.", factory=Ssl)
    authentication: Authentication = key("Who may call.", factory=Authentication)
    workers: int = key("Processes that serve requests.", 2)
    threads: int = key("Threads in each of them; a followed log, an upload or a download occupies one.", 16)


@dataclass(frozen=True)
class Hypervisor:
    libvirt_uri: str = key("Connection to libvirt.", "qemu:///system")
    domain_type: Literal["auto", "kvm", "qemu"] = key(
        "`auto`: KVM when /dev/kvm opens and the CPU has it.", "auto"
    )
    firmware: Literal["bios", "uefi"] = key("Firmware of new VMs.", "bios")
    console_directory: str = key("Where the logs of serial consoles are kept.", "/var/log/libvirt/qemu")


@dataclass(frozen=True)
class StageTimeouts:
    setup: int = key("Seconds the `setup` stage may take.", 300)
    create: int = key("Seconds the `create` stage may take.", 60)
    prepare: int = key("Seconds the `prepare` stage may take.", 1800)
    install: int = key("Seconds the `install` stage may take.", 7200)
    cleanup: int = key("Seconds the `cleanup` stage may take.", 300)


@dataclass(frozen=True)
class Builds:
    concurrency: int = key("Builds that run on this node at one time.", 2)
    lease_s: int = key("A build whose worker has not been heard of for so many seconds is undone.", 60)
    log_limit_bytes: int = key(
        "What a build may write to its log; the rest is cut, with a note.", 16 * 1024 * 1024
    )
    keep_secrets_hours: int = key(
        "Hours for which values of secret arguments of a failed or cancelled build are kept for its retry; "
        "afterwards they must be given again.",
        24,
    )
    stage_timeout_s: StageTimeouts = key("Time limits of the stages.", factory=StageTimeouts)


@dataclass(frozen=True)
class SandboxSettings:
    first_uid: int = key(
        "First host uid and gid given to sandboxes; each build at one time uses 65,536.", 100_000
    )
    hidden_paths: tuple[str, ...] = key("More host paths that scripts must not see.", ())
    network: bool = key("Give builds outbound network access (never to this host's loopback).", True)
    sdk_directory: str | None = key(
        "Directory that holds the `vmbuilder` package. Default: where it is installed.", None
    )
    memory_mib: int = key("Memory limit of a sandbox, where the host has cgroup v2.", 4096)
    processes: int = key("Limit of processes of a sandbox.", 2048)


@dataclass(frozen=True)
class Pool:
    driver: Literal["directory", "rbd"] = key(
        "Kind of pool: files of a directory, or images of a Ceph RBD pool.", "directory"
    )
    path: str | None = key(
        "`directory`: where the volumes' files are. Default: `<state_directory>/pools/<name>`.", None
    )
    format: Literal["raw", "qcow2"] = key("`directory`: format of new volumes.", "raw")
    ceph_pool: str | None = key("`rbd`: name of the Ceph pool. Default: the name of this pool.", None)
    ceph_user: str = key("`rbd`: Ceph user, without `client.`; see docs/storage.md for what it needs.", "pvc")
    ceph_conf: str = key("`rbd`: Ceph's configuration file, which names the monitors.", "/etc/ceph/ceph.conf")
    ceph_keyring: str | None = key(
        "`rbd`: file with the user's key; must not be readable by others. Default: where `ceph_conf` says, "
        "else `/etc/ceph/ceph.client.<user>.keyring`.",
        None,
    )


@dataclass(frozen=True)
class Ceph:
    ceph_user: str = key("Ceph user for pools made through the API, without `client.`.", "pvc")
    ceph_conf: str = key(
        "The cluster's configuration file; a node without it does without such pools.", "/etc/ceph/ceph.conf"
    )
    ceph_keyring: str | None = key("File with the user's key; as in `storage.pools`.", None)
    manager_user: str | None = key(
        "Ceph user that may make, change and remove pools. Set it on one node or more; see docs/storage.md.",
        None,
    )
    manager_keyring: str | None = key("File with that user's key.", None)


@dataclass(frozen=True)
class Storage:
    pools: dict[str, Pool] = key("The pools, by name.", factory=dict)
    ceph: Ceph = key("The Ceph cluster in which pools are made through the API.", factory=Ceph)
    max_volume_gib: int = key("Largest volume that may be made.", 16_384)
    mapping: Literal["auto", "loop", "export", "kernel"] = key(
        "How volumes become block devices: `loop` (raw files), `export` (qemu-storage-daemon), `kernel` "
        "(the kernel's RBD; files as with `auto`); `auto` probes.",
        "auto",
    )


@dataclass(frozen=True)
class Images:
    imports: int = key(
        "Images that are imported on this node at one time. Uploads that pause between two chunks count.", 4
    )
    max_virtual_gib: int = key(
        "Largest image: both its file and what its disks hold together, in GiB. The pool has a limit, too.",
        2048,
    )
    upload_idle_s: int = key("An upload that gets no next chunk for so many seconds is ended.", 900)
    fetch_timeout_s: int = key("Seconds the fetching of an image by URL may take.", 21_600)
    fetch_from: tuple[str, ...] = key(
        "Networks, such as `127.0.0.0/8`, from which images are fetched although they are this node's, or "
        "link-local.",
        (),
    )


@dataclass(frozen=True)
class Network:
    bridge: str | None = key(
        "Bridge on this node. Default: `vmbr<vni>`, or `br<name>` for upstream, cluster, storage.", None
    )
    user: bool = key(
        "QEMU's user-mode network instead of a bridge: outbound only, for trying things out.", False
    )


@dataclass(frozen=True)
class Config:
    cluster: Cluster = key("The cluster.", factory=Cluster)
    node: Node = key("This node.", factory=Node)
    database: Database = key("PostgreSQL, the record of truth.", factory=Database)
    queue: Queue = key("Redis, which carries tasks to nodes.", factory=Queue)
    api: Api = key("The API daemon.", factory=Api)
    hypervisor: Hypervisor = key("libvirt and QEMU.", factory=Hypervisor)
    builds: Builds = key("Running builder scripts.", factory=Builds)
    sandbox: SandboxSettings = key("What confines builder scripts.", factory=SandboxSettings)
    storage: Storage = key("Storage pools of this node.", factory=Storage)
    images: Images = key("Images that are uploaded or fetched.", factory=Images)
    networks: dict[str, Network] = key(
        "Networks of this node, by VNI or `upstream`, `cluster`, `storage`.", factory=dict
    )
    state_directory: str = key("Where the node daemon keeps its state.", "/var/lib/pvc")


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read the configuration from `path`, else $PVC_CONFIG, else /etc/pvc/pvc.conf.

    Raises EnvironmentFault when the file cannot be read, WrongInput listing every problem in it.
    """
    file = Path(path or os.environ.get("PVC_CONFIG") or DEFAULT_PATH)
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as exc:
        raise EnvironmentFault(
            f"read configuration {file}", exc.strerror or str(exc), "set PVC_CONFIG or --config"
        ) from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise WrongInput(f"read configuration {file}", f"not YAML: {' '.join(str(exc).split())}") from exc
    return parse_config(document, str(file))


def parse_config(document: object, source: str = "configuration") -> Config:
    """Turn a parsed YAML document into a Config; raises WrongInput with every problem, each with its path."""
    problems: list[Problem] = []
    config = _read_section(Config, {} if document is None else document, "", problems)
    if not problems:
        problems.extend(_check_combinations(config))
    if problems:
        raise WrongInput(f"read configuration {source}", problems=problems, hint="see docs/configuration.md")
    return typing.cast(Config, config)


def read_secret(path: str) -> str:
    """The first line of a secret's file; raises EnvironmentFault when others may read the file."""
    try:
        with open(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.readline().strip()
    except OSError as exc:
        raise EnvironmentFault(f"read secret {path}", exc.strerror or str(exc)) from exc
    if mode & 0o007:
        raise EnvironmentFault(
            f"read secret {path}", f"others can read it (mode {mode:04o})", f"chmod o= {path}"
        )
    if not secret:
        raise EnvironmentFault(f"read secret {path}", "the file is empty")
    return secret


def describe(section: type = Config, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Rows of the reference: (key, type, default, documentation)."""
    hints = typing.get_type_hints(section)
    for item in fields(section):
        path, hint = f"{prefix}{item.name}", hints[item.name]
        nested = _mapping_value(hint)
        if is_dataclass(hint):
            yield from describe(typing.cast(type, hint), f"{path}.")
        elif nested is not None:
            yield path, "mapping", "{}", str(item.metadata["doc"])
            yield from describe(nested, f"{path}.<name>.")
        else:
            yield path, _type_name(hint), _default_text(item), str(item.metadata["doc"])


def _check_combinations(config: Config) -> Iterator[Problem]:
    """What no single key shows."""
    loopback = config.api.listen.address in LOOPBACK
    if not loopback and not config.api.authentication.enabled:
        yield Problem("api.authentication.enabled", "can be false only when api.listen.address is loopback")
    if not loopback and config.api.authentication.anonymous_role:
        yield Problem(
            "api.authentication.anonymous_role", "is allowed only when api.listen.address is loopback"
        )
    if config.api.ssl.enabled and not (config.api.ssl.certificate and config.api.ssl.key):
        yield Problem("api.ssl", "enabled needs certificate and key")
    for name in ("heartbeat_s", "reserved_memory_mib"):
        if getattr(config.node, name) < 1:
            yield Problem(f"node.{name}", "must be at least 1")
    yield from _check_transfers(config.node)
    yield from _check_images(config.images)
    if config.builds.keep_secrets_hours < 0:
        yield Problem("builds.keep_secrets_hours", "must be at least 0")
    if config.node.dead_after_s <= config.node.heartbeat_s:
        yield Problem("node.dead_after_s", "must be more than node.heartbeat_s")
    if config.sandbox.first_uid < 65_536:
        yield Problem("sandbox.first_uid", "must be at least 65536, outside the host's own accounts")


def _check_images(images: Images) -> Iterator[Problem]:
    for name in ("imports", "max_virtual_gib", "upload_idle_s", "fetch_timeout_s"):
        if getattr(images, name) < 1:
            yield Problem(f"images.{name}", "must be at least 1")
    for network in images.fetch_from:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            yield Problem("images.fetch_from", f"{network!r} is not a network such as 127.0.0.0/8")


def _check_transfers(node: Node) -> Iterator[Problem]:
    if node.transfers < 1:
        yield Problem("node.transfers", "must be at least 1")
    try:
        address = ipaddress.ip_address(node.transfer_address)
    except ValueError:
        yield Problem("node.transfer_address", "must be an IP address")
    else:
        if address.is_unspecified:
            yield Problem("node.transfer_address", "must be one address, which the API can connect to")
    if node.transfer_ports is None:
        return
    found = PORTS.fullmatch(node.transfer_ports)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < first <= last < 65536:
        yield Problem("node.transfer_ports", "must be a port, or a range such as 7400-7409")


def _read_section(section: type, document: object, path: str, problems: list[Problem]) -> Any:
    if not isinstance(document, Mapping):
        problems.append(Problem(path, "must be a mapping"))
        return None
    hints = typing.get_type_hints(section)
    for name in document:
        if name not in hints:
            problems.append(Problem(_join(path, name), _unknown_key(str(name), hints)))
    values = {
        name: _read_value(hint, document[name], _join(path, name), problems)
        for name, hint in hints.items()
        if name in document
    }
    return section(**values)


def _read_value(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    nested = _mapping_value(hint)
    if is_dataclass(hint):
        return _read_section(typing.cast(type, hint), {} if value is None else value, path, problems)
    if nested is not None:
        if not isinstance(value, Mapping):
            problems.append(Problem(path, "must be a mapping"))
            return {}
        return {
            str(k): _read_section(nested, {} if v is None else v, _join(path, k), problems)
            for k, v in value.items()
        }
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append(Problem(path, "must be a list of texts"))
            return ()
        return tuple(value)
    if not any(_fits(option, value) for option in _options(hint)):
        problems.append(Problem(path, f"must be {_type_name(hint)}, not {value!r}"))
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _fits(option: Any, value: object) -> bool:
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, option)


def _mapping_value(hint: Any) -> type | None:
    return typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "list of texts"
    return {int: "whole number", str: "text", bool: "true or false", type(None): "null"}.get(hint, str(hint))


def _default_text(item: "Field[Any]") -> str:
    if item.default is not MISSING:
        shown = item.default
        return "null" if shown is None else str(list(shown) if isinstance(shown, tuple) else shown)
    return "(see text)"


def _unknown_key(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"unknown key; did you mean {close[0]!r}?"
        if close
        else f"unknown key; known here: {', '.join(known)}"
    )


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
