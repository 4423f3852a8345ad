"""`pvc storage`: pools, volumes, snapshots."""

import click

from pvc.commands.pool import pool
from pvc.commands.volume import volume


@click.group()
def storage() -> None:
    """Pools, and the volumes and snapshots in them."""


for part in (pool, volume):
    storage.add_command(part)
