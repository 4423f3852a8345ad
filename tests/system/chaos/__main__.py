"""The whole fault matrix: `make chaos`.

    dev/check chaos [--builder NAME]… [--pool directory|ceph]… [--point TEXT]… [--fault NAME]…
        [--limit-minutes N] [--resume] [--results FILE]

Exits with 1 when a cell ended badly. A run that was stopped goes on with --resume.
"""

import argparse
import itertools
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from chaos.builders import BUILDERS
from chaos.cell import find_points, run_cell
from chaos.faults import FAULTS
from chaos.matrix import Cell, Record, cells_of, faults_of
from chaos.points import Brake
from chaos.small_disks import small_stack

POOLS = ("directory", "ceph")


def main() -> int:
    options = parse()
    record = Record(options.results, resume=options.resume)
    deadline = time.monotonic() + options.limit_minutes * 60
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the stack is taken down in order
    try:
        for builder, pool in itertools.product(options.builder or BUILDERS, options.pool or POOLS):
            if any(fault in wanted_faults(options) for fault in faults_of(builder, pool)):
                run_group(options, record, builder, pool, deadline)
    except KeyboardInterrupt:
        print("stopped; --resume goes on from here")
    print(f"\n{record.show()}\n")
    for name in record.bad():
        result = record.results[name]
        print(f"== {name}: {result.outcome}\n{result.why}\n{dict(result.left)}\n{result.log}\n")
    return 1 if record.bad() else 0


def run_group(options: argparse.Namespace, record: Record, builder: str, pool: str, deadline: float) -> None:
    """One builder over one pool: a stack for all its cells, and a new one after each that ended badly."""
    todo: list[Cell] | None = None
    while todo is None or todo:
        with ExitStack() as stack:
            cluster = stack.enter_context(small_stack(pool))
            brake = stack.enter_context(Brake(cluster))
            if todo is None:
                todo = wanted_cells(
                    options, record, cells_of(builder, pool, find_points(cluster, BUILDERS[builder]))
                )
            while todo:
                if time.monotonic() > deadline:
                    return
                cell = todo.pop(0)
                result = run_cell(cluster, brake, cell, f"c{len(record.results)}")
                record.add(cell, result)
                print(f"{cell}: {result.outcome} ({result.seconds:g} s) {result.why}", flush=True)
                if not result.is_good:
                    break


def wanted_cells(options: argparse.Namespace, record: Record, cells: list[Cell]) -> list[Cell]:
    faults = wanted_faults(options)
    return [
        cell
        for cell in cells
        if cell not in record
        and cell.fault in faults
        and (not options.point or any(text in cell.point.name for text in options.point))
    ]


def wanted_faults(options: argparse.Namespace) -> list[str]:
    return options.fault or list(FAULTS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill everything a build depends on, at every point of it.")
    parser.add_argument("--builder", action="append", choices=BUILDERS)
    parser.add_argument("--pool", action="append", choices=POOLS)
    parser.add_argument("--point", action="append", metavar="TEXT", help="points whose name has this text")
    parser.add_argument("--fault", action="append", choices=FAULTS)
    parser.add_argument("--limit-minutes", type=float, default=600, help="begin no cell after this time")
    parser.add_argument("--results", type=Path, default=Path("build/chaos.json"), metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="leave out the cells FILE has already")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
