"""Names of files that strangers give: in archives, and in the documents that refer to them."""

from urllib.parse import unquote

MAX_BYTES = 255


def name_problem(name: str) -> str | None:
    """Why a name cannot be that of a file in an archive, or None. Only plain names in one folder will do."""
    if not name:
        return "is empty"
    if len(name.encode(errors="replace")) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    if not name.isprintable():
        return "has a control or invisible character"
    if name.startswith(("/", "\\")) or name[1:3] in (":\\", ":/"):
        return "is an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "leads out of its folder by '..'"
    if "://" in name:
        return "is a URL; only files in the same archive can be used"
    if "/" in name or "\\" in name:
        return "is in a folder; all files must lie side by side"
    return "is the name of a folder" if name == "." else None


def shown(text: str) -> str:
    """A stranger's text for a message: quoted, escaped, of bounded length."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def without_escapes(href: str) -> str:
    """An OVF's href is a URI: `my%20disk.vmdk` is the file `my disk.vmdk`."""
    return unquote(href, errors="replace")
