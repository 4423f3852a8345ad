"""A guest's own installer, started from an ISO image; unattended when it gets its answers."""

import json

from vmbuilder import Argument, ValidationError, VMBuilder, answers, cdrom
from vmbuilder.command import require_tools
from vmbuilder.domain import Devices

# What every guest has drivers for.
OLD_HARDWARE = {"disk_bus": "sata", "nic_model": "e1000e"}


class VMBuilderScript(VMBuilder):
    """Blank disks, and the profile's ISO image as a CD-ROM from which the VM starts first.

    With `answers`, the installer finds them on a second CD-ROM and asks nobody: the build waits until the
    guest powers off or reboots, takes the CD-ROMs away, and the VM starts from its disk. Without, the VM
    starts with the ISO for somebody to install it; the CD-ROM goes when the guest first stops or reboots.
    """

    api_version = 1
    answers_mib = 4
    arguments = (
        Argument(
            "answers",
            default="none",
            choices=("none", "preseed", "kickstart", "autoinstall", "cloud-init"),
            help="what the installer reads its answers as",
        ),
        Argument("answer_template", help="the answers; default: the profile's user data"),
        Argument(
            "values",
            type="list",
            pattern=r"[a-z][a-z0-9_]*=[^\n]*",
            help="NAME=VALUE for names of your own in the template",
        ),
        Argument("user", pattern=r"[a-z_][a-z0-9_-]{0,30}", help="an administrator, for the template"),
        Argument(
            "ssh_keys",
            type="list",
            pattern=r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [A-Za-z0-9@._:+-]*)?",
            help="who may log in, for the template",
        ),
        Argument(
            "root_password_hash",
            pattern=r"[!*$./A-Za-z0-9=,]+",
            secret=True,
            help="see crypt(5), for the template",
        ),
        Argument("locale", default="C.UTF-8", pattern=r"[A-Za-z0-9_.@-]+", help="for the template"),
        Argument("timezone", default="Etc/UTC", pattern=r"[A-Za-z0-9_+/-]+", help="for the template"),
        Argument(
            "wait",
            type="boolean",
            help="until the guest powers off or reboots; default: when there are answers",
        ),
        Argument(
            "timeout_minutes", type="integer", default=60, minimum=1, maximum=1440, help="of an installation"
        ),
        Argument("virtio", type="boolean", default=True, help="false: SATA disks and Intel network cards"),
        Argument("cdrom_bus", default="sata", choices=("sata", "scsi"), help="of the CD-ROM drives"),
    )

    def setup(self) -> None:
        """Refuse what cannot work before anything is made, and render the answers."""
        if all(drive.temporary for drive in self.context.cdroms):
            raise ValidationError("the profile has no image of kind iso to install from")
        if not any(volume.source_volume is None for volume in self.volumes):
            raise ValidationError("the storage template has no blank disk to install to")
        self.format = answers.FORMATS.get(self.arguments["answers"])
        template = self.arguments["answer_template"] or self.userdata
        if self.format is None:
            if template:
                raise ValidationError("there is a template for answers, or user data, but answers=none")
            return
        if not template:
            raise ValidationError("answers need a template: answer_template, or user data in the profile")
        require_tools(cdrom.TOOLS)
        self.files = answers.files_of(
            self.format, answers.render(template, self.template_values()), self.context
        )

    def create(self) -> str:
        """A machine of the hardware that was asked for."""
        hardware = {} if self.arguments["virtio"] else OLD_HARDWARE
        return self.domain_xml(Devices(**hardware, cdrom_bus=self.arguments["cdrom_bus"]))

    def prepare(self) -> None:
        """Make the disks, which stay blank, and the CD-ROM with the answers."""
        for volume in self.volumes:
            volume.create()
        if self.format is not None:
            cdrom.make(self.answers, self.format.label, self.files)
            self.log_info(f"answers: {', '.join(self.files)} on a CD-ROM labelled {self.format.label}")
        if self.is_unattended():
            self.install_from_cdrom(self.arguments["timeout_minutes"] * 60)

    def is_unattended(self) -> bool:
        """Whether the build waits for the end of the installation."""
        wait = self.arguments["wait"]
        return self.format is not None if wait is None else bool(wait)

    def template_values(self) -> dict[str, str | None]:
        """What the template can name: of the plan, of the arguments, and the user's own."""
        keys = self.arguments["ssh_keys"] or ()
        own = dict(item.split("=", 1) for item in self.arguments["values"] or ())
        same = {name: self.arguments[name] for name in ("user", "root_password_hash", "locale", "timezone")}
        return {
            **answers.plan_values(self.context),
            **same,
            "ssh_key": keys[0] if keys else None,
            "ssh_keys": "\n".join(keys),
            "ssh_keys_json": json.dumps(list(keys)),
            **own,
        }
