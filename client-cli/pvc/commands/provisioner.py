"""`pvc provisioner`: everything about making VMs."""

import click

from pvc.commands.create import create, plan
from pvc.commands.image import image
from pvc.commands.network_template import network
from pvc.commands.ova import ova
from pvc.commands.profile import profile
from pvc.commands.script import script
from pvc.commands.storage_template import storage
from pvc.commands.system_template import system
from pvc.commands.userdata import userdata


@click.group()
def provisioner() -> None:
    """Make VMs: templates, images, userdata, scripts, profiles, builds."""


@provisioner.group()
def template() -> None:
    """Templates: the hardware of VMs."""


for part in (system, network, storage):
    template.add_command(part)
for command in (template, image, ova, userdata, script, profile, create, plan):
    provisioner.add_command(command)
