"""Answers for an installer that asks nobody: rendered from a template, for a CD-ROM it finds by its label.

A template is the installer's own file with names in it: `@{host_name}`. Everything else stays as it is, so
that shell, hashes of passwords and YAML need no quoting; `@@{` stands for `@{`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmbuilder.cloud_init import NOCLOUD_LABEL, Instance
from vmbuilder.context import Context
from vmbuilder.errors import ValidationError

_NAME: Final = re.compile(r"@(@\{)|@\{([^}\n]*)\}?")
MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Format:
    """How an installer finds its answers: a CD-ROM with this label, on it a file of this name.

    `is_nocloud`: it takes the files of cloud-init's data source NoCloud, of which this is one.
    """

    label: str
    file: str
    is_nocloud: bool = False


FORMATS: Final = {
    "preseed": Format("PRESEED", "preseed.cfg"),
    "kickstart": Format("OEMDRV", "ks.cfg"),
    "autoinstall": Format(NOCLOUD_LABEL, "user-data", is_nocloud=True),
    "cloud-init": Format(NOCLOUD_LABEL, "user-data", is_nocloud=True),
}


def plan_values(context: Context) -> dict[str, str | None]:
    """What a template can name of every VM; None: this one has none."""
    disks = [volume.disk_id for volume in context.volumes]
    macs = [network.mac for network in context.networks]
    return {
        "host_name": context.vm_name,
        "uuid": str(context.vm_uuid),
        "profile": context.vm_profile,
        "mac": macs[0] if macs else None,
        "macs": " ".join(macs),
        "disk": next(
            (v.disk_id for v in context.volumes if v.mountpoint == "/"), disks[0] if disks else None
        ),
        "disks": " ".join(disks),
    }


def render(template: str, values: Mapping[str, str | None]) -> str:
    """The template with its names replaced. Raises ValidationError for all wrong names at once."""
    problems: list[str] = []

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        is_known = match[0].endswith("}") and match[2] in values
        found = values[match[2]] if is_known else None
        if found is None:
            line = template.count("\n", 0, match.start()) + 1
            why = "has no value" if is_known else "is unknown"
            problems.append(f"line {line}: {match[0][:60]} {why}")
        return found or ""

    text = _NAME.sub(value, template)
    if problems:
        known_names = ", ".join(sorted(values))
        raise ValidationError(f"the template of the answers: {'; '.join(problems)} (names: {known_names})")
    return text


def files_of(form: Format, text: str, context: Context) -> dict[str, str]:
    """The files of the CD-ROM by name. Raises ValidationError when they are too much for it."""
    if len(text.encode()) > MAX_BYTES:
        raise ValidationError(f"the answers have more than {MAX_BYTES} bytes")
    if form.is_nocloud:
        return Instance(str(context.vm_uuid), context.vm_name, text).files()
    return {form.file: text}
