"""What is asked for when an image is made, checked before anything is sent."""

import os
import re
from dataclasses import dataclass

from pvc.client import Params
from pvc.errors import Problem, WrongInput

DISK_FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")
FORMATS = {"disk": DISK_FORMATS, "iso": ("iso",), "ova": ("ova",)}
ALL_FORMATS = tuple(form for forms in FORMATS.values() for form in forms)
FORMAT_OF_SUFFIX = {".img": "raw"} | {f".{form}": form for form in DISK_FORMATS}
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class ImageRequest:
    """The image's name, and the parameters of its upload or import, by the names of the API."""

    name: str
    kind: str
    format: str
    pool: str
    node: str | None = None
    sha256: str | None = None
    system: str | None = None

    @property
    def parameters(self) -> Params:
        return {
            "kind": self.kind,
            "format": self.format,
            "pool": self.pool,
            "node": self.node,
            "sha256": self.sha256,
            "system": self.system,
        }

    @property
    def metadata(self) -> dict[str, str]:
        """The same with the name, for an upload by tus; what is not given is left out."""
        return {"name": self.name} | {key: str(value) for key, value in self.parameters.items() if value}


def image_request(
    name: str,
    source: str,
    *,
    kind: str,
    form: str | None,
    pool: str | None,
    node: str | None = None,
    sha256: str | None = None,
    system: str | None = None,
) -> ImageRequest:
    """Raises WrongInput with all problems. `source` is a file or URL, whose name is good for a hint only."""
    problems: list[Problem] = []
    hint = ""
    formats = FORMATS[kind]
    if form is None and len(formats) == 1:
        form = formats[0]
    if form is None:
        problems.append(Problem("--format", "must be given for a disk: " + ", ".join(formats)))
        hint = format_hint(source)
    elif form not in formats:
        problems.append(Problem("--format", f"{form} is none of type {kind} ({', '.join(formats)})"))
    if not pool:
        problems.append(Problem("--pool", "must be given"))
    if sha256 is not None and not SHA256.fullmatch(sha256):
        problems.append(Problem("--sha256", "must be 64 hexadecimal digits"))
    if system is not None and kind != "ova":
        problems.append(Problem("--system", "is for type ova only"))
    if problems or form is None or not pool:
        raise WrongInput("the image cannot be made like this", hint=hint, problems=problems)
    return ImageRequest(name, kind, form, pool, node, sha256.lower() if sha256 else None, system)


def format_hint(source: str) -> str:
    """What the name suggests. It is not taken for true: a wrong format makes a disk of nonsense."""
    suffix = os.path.splitext(source)[1].lower()
    if suffix not in FORMAT_OF_SUFFIX:
        return ""
    return f"by its name it could be `--format {FORMAT_OF_SUFFIX[suffix]}`; the format is never guessed"
