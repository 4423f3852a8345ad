"""Kinds of parameters, each with the check that makes its value safe to store and to hand on."""

import ipaddress
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from pvccommon import names

MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_TEXT = 4096
TRUE_WORDS = ("y", "yes", "t", "true", "on", "1")
FALSE_WORDS = ("n", "no", "f", "false", "off", "0")
SELECTORS = ("mem", "memprov", "vcpus", "vms", "load", "none")
MIGRATION_METHODS = ("none", "live", "shutdown")
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
FILESYSTEM_ARGUMENT = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9_-]*(=[A-Za-z0-9._,:/=+^@%-]*)?")
MOUNTPOINT = re.compile(r"/[A-Za-z0-9._/@+-]*")
KERNEL_MOUNTPOINTS = ("/proc", "/sys", "/dev", "/run")

MISSING = {"required": "is missing", "null": "is missing"}


class Text(fields.String):
    """A text of at most `longest` characters; with `allow_none`, an empty one is null."""

    default_error_messages = {"invalid": "must be a text", **MISSING}  # noqa: RUF012

    def __init__(self, *, longest: int = MAX_TEXT, **options: Any) -> None:
        super().__init__(**options)
        self.longest = longest

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        if value == "" and self.allow_none:
            value = None
        elif value == "" and self.required:
            raise ValidationError("is empty")
        return super().deserialize(value, attr, data, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > self.longest:
            raise ValidationError(f"is longer than {self.longest} characters")
        self.check(value)
        return value

    def check(self, value: str) -> None:
        """Raise ValidationError when the text is not what this field takes."""


class Name(Text):
    """The name of a template, document, script or profile."""

    def check(self, value: str) -> None:
        if not names.is_object_name(value):
            raise ValidationError(
                "must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            )


class VmName(Text):
    def check(self, value: str) -> None:
        if not names.is_vm_name(value):
            raise ValidationError("must be a host name: 1 to 63 lower-case letters, digits and inner hyphens")


class PoolName(Name):
    pass


class VolumeName(Text):
    def check(self, value: str) -> None:
        if not names.VOLUME_NAME.fullmatch(value):
            raise ValidationError("must be 1 to 128 letters, digits, '.', '_' or '-'")


class NodeName(Text):
    def __init__(self, **options: Any) -> None:
        super().__init__(longest=63, **options)

    def check(self, value: str) -> None:
        if not NODE_NAME.fullmatch(value):
            raise ValidationError("must be the name of a node")


class Document(Text):
    """A userdata document or a script; its audit row gets only size and hash."""

    def __init__(self, **options: Any) -> None:
        super().__init__(longest=MAX_DOCUMENT_BYTES, **options)

    def check(self, value: str) -> None:
        if len(value.encode()) > MAX_DOCUMENT_BYTES:
            raise ValidationError(f"is larger than {MAX_DOCUMENT_BYTES} bytes")
        if not value.strip():
            raise ValidationError("is empty")


class Address(Text):
    def check(self, value: str) -> None:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValidationError("must be an IP address") from None
        if "%" in value:
            raise ValidationError("must be an IP address without a zone")


class MacTemplate(Text):
    """`52:54:00:…`, with the optional placeholders {prefix}, {vmid} and {netid}."""

    def check(self, value: str) -> None:
        problem = names.mac_template_problem(value)
        if problem:
            raise ValidationError(problem)
        if int(names.mac_address(value, "vm1", "", 0)[:2], 16) & 1:
            raise ValidationError("gives a multicast address: the first octet must be even")


class NodeList(Text):
    """Names of nodes with commas between them; stored without blanks and repetitions."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        return ",".join(dict.fromkeys(part.strip() for part in text.split(",")))

    def check(self, value: str) -> None:
        for part in value.split(","):
            if not NODE_NAME.fullmatch(part.strip()):
                raise ValidationError(f"{part.strip()!r} is not the name of a node")


class FilesystemArgument(Text):
    """One option of mkfs, such as `-L=root` or `--block-size=4096`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(longest=128, **options)

    def check(self, value: str) -> None:
        if not FILESYSTEM_ARGUMENT.fullmatch(value):
            raise ValidationError(f"{value!r} is not of the form -x, -x=value, --name or --name=value")


class Mountpoint(Text):
    def check(self, value: str) -> None:
        if not MOUNTPOINT.fullmatch(value):
            raise ValidationError("must be an absolute path of letters, digits and . _ @ + -")
        if posixpath.normpath(value) != value or value.startswith("//"):
            raise ValidationError("must be a normalised path: no '//', '.', '..' or '/' at its end")
        if any(value == path or value.startswith(path + "/") for path in KERNEL_MOUNTPOINTS):
            raise ValidationError("is a place of the kernel's own file systems")


class Whole(fields.Integer):
    """A whole number as JSON number or decimal text, within bounds."""

    default_error_messages = {"invalid": "must be a whole number", **MISSING}  # noqa: RUF012

    def __init__(self, least: int, most: int, **options: Any) -> None:
        error = f"must be from {least} to {most}"
        super().__init__(validate=Range(least, most, error=error), **options)

    def _validated(self, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self.make_error("invalid")


class Flag(fields.Boolean):
    """A boolean in any spelling existing clients use."""

    default_error_messages = {"invalid": "must be true or false", **MISSING}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        word = str(value).lower() if isinstance(value, bool | int | str) else ""
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise self.make_error("invalid")


class Choice(Text):
    """One of a few words."""

    def __init__(self, words: tuple[str, ...], **options: Any) -> None:
        super().__init__(validate=OneOf(words, error="must be one of {choices}"), **options)


class Texts(fields.List):
    """A repeated parameter, or a JSON list."""

    default_error_messages = {"invalid": "must be a list of texts", **MISSING}  # noqa: RUF012

    def __init__(self, inner: Text | None = None, *, most: int = 256, **options: Any) -> None:
        limit = Length(max=most, error=f"has more than {most} entries")
        super().__init__(inner or Text(), validate=limit, **options)


class NoParameters(Schema):
    """A request that takes no parameters."""


class Filter(Schema):
    limit = Text(
        longest=128, metadata={"description": "part of the name; ^ anchors it at the start, $ at the end"}
    )


class Message(Schema):
    message = fields.String(required=True, metadata={"description": "one line for people"})


def documented(text: str, **more: Any) -> Mapping[str, Any]:
    """Metadata of a field for the OpenAPI document."""
    return {"description": text, **more}
