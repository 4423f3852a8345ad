"""`pvc-node`: the daemon of a hypervisor."""

import argparse
import logging
import sys

from pvccommon import __version__
from pvccommon.config import Config, load_config
from pvccommon.errors import PvcError
from pvccommon.storage import pools_from_config
from pvcnoded import probe


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pvc-node", description="Run builds and VMs on this hypervisor.")
    parser.add_argument("--config", help="configuration file (default: $PVC_CONFIG, else /etc/pvc/pvc.conf)")
    parser.add_argument("--version", action="version", version=f"pvc-node {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the daemon in the foreground")
    commands.add_parser("check", help="print what this host can do, and end")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = load_config(options.config)
        if options.command == "serve":
            serve(config, options.config)
        else:
            print_check(config)
    except PvcError as exc:
        print(f"pvc-node: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return 1
    return 0


def serve(config: Config, config_path: str | None) -> None:
    from pvcnoded.supervisor import Supervisor  # `check` must work where libvirt and Celery do not

    Supervisor(config, config_path).serve()


def print_check(config: Config) -> None:
    """A table of abilities, each with what was found."""
    capabilities = probe.probe_capabilities(config)
    total, free = probe.memory_mib()
    rows = [
        ("virtual machines", f"{capabilities['domain']['type']} ({capabilities['kvm']['reason']})"),
        ("firmware", ", ".join(capabilities["firmware"])),
        ("memory", f"{free} of {total} MiB free"),
        ("file systems", ", ".join(probe.probe_filesystems())),
        ("limits by cgroup v2", "yes" if capabilities["cgroup2"] else "no: memory of builds is not limited"),
    ]
    for vni, network in probe.probe_networks(config).items():
        where = "user-mode" if network["user"] else f"bridge {network['bridge']}"
        rows.append((f"network {vni}", where if network["present"] else f"{where} is missing"))
    for name, pool in pools_from_config(config).items():
        words = f"{pool.driver}, devices by {pool.mapping()}, {pool.space().free_bytes // 1024**2} MiB free"
        rows.append((f"pool {name}", words))
    width = max(len(name) for name, _ in rows)
    for name, found in rows:
        print(f"{name:<{width}}  {found}")


if __name__ == "__main__":
    sys.exit(main())
