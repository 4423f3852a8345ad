"""Uploads of images that go on where they broke off: tus 1.0.0 (core, creation, checksum, termination).

The upload itself is on a node (pvcnoded/imports/session.py); its address is made of the image's number and a
random text. A chunk goes to the node as it comes and counts there when all of it is right.
"""

import base64
import binascii
import contextlib
import hmac
import re
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, g, jsonify, request
from marshmallow import Schema
from werkzeug.exceptions import ClientDisconnected

from pvcapid.auth import PREFIX
from pvcapid.endpoint import endpoint
from pvcapid.fields import Name, NoParameters
from pvcapid.images import ImageContent, checked_place, node_arguments
from pvcapid.parameters import Given, parse, raw_parameters
from pvcapid.services import reading, services
from pvcapid.sizes import MOST_BYTES
from pvcapid.storage_nodes import ANSWER_TIMEOUT_S
from pvcapid.uploaded_file import CHUNK_BYTES
from pvcapid.volume_content import patient_with_caller
from pvccommon.errors import Busy, NoAnswer, NotFound, PvcError, WrongInput, WrongState, error_from_dict
from pvccommon.models import Image, ImageState
from pvccommon.queue import call_node
from pvccommon.transfer import Offer, Sender, connect

blueprint = Blueprint("image_uploads", __name__)
PATH = "/provisioner/image/upload"
VERSION = "1.0.0"
EXTENSIONS = "creation,checksum,termination"
# Algorithms, and the bytes of their digests.
CHECKSUMS = {"sha256": 32, "sha1": 20}
OFFSET_OCTETS = "application/offset+octet-stream"
MOST_CHUNK_BYTES = 16 * 1024**2  # the node keeps a chunk in memory until it is proved
UPLOAD_ID = re.compile(r"([0-9]{1,9})-([0-9a-f]{32})")
MOST_METADATA_BYTES = 8190
NUMBER = re.compile(r"[0-9]{1,18}")
CONFLICT, GONE, PRECONDITION_FAILED, TOO_LARGE, WRONG_TYPE, CHECKSUM_MISMATCH = 409, 410, 412, 413, 415, 460
HEADERS = {"Tus-Resumable": VERSION, "Cache-Control": "no-store"}


class UploadMetadata(ImageContent):
    name = Name(required=True)


class NoBody(Schema):
    """A request whose body is bytes."""


@blueprint.route(PATH, methods=["OPTIONS"])
@endpoint(NoParameters, answer=None, upload=True)
def describe_uploads(given: Given) -> Response:
    """Tell which parts of tus are spoken here."""
    return answer(
        204,
        {
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
            "Tus-Max-Size": str(MOST_BYTES),
        },
    )


@blueprint.post(PATH)
@endpoint(UploadMetadata, answer=None, lenient=True, absent=400, status=201, upload=True)
def begin_upload(given: Given) -> Response:
    """Begin an upload in chunks (tus); parameters stand in Upload-Metadata."""
    refused = refuse_version()
    if refused is not None:
        return refused
    given = metadata_given()
    size_bytes = number_header("Upload-Length", given, least=1)
    what = f"upload image {given.get('name', '')}".strip()
    place = checked_place(given, given.get("name"), what)
    begun = place.ask("image.open", {**node_arguments(given["name"], given), "size_bytes": size_bytes})
    location = f"{PREFIX}{PATH}/{begun['image_id']}-{begun['token']}"
    return answer(201, {"Location": location, "Upload-Offset": "0"})


@blueprint.route(f"{PATH}/<upload>", methods=["HEAD"])
@endpoint(NoParameters, answer=None, upload=True)
def show_upload(given: Given, upload: str) -> Response:
    """Tell how many bytes an upload has."""
    refused = refuse_version()
    if refused is not None:
        return refused
    image, token = find_upload(upload)
    if image.state == ImageState.READY:
        state = {"offset": image.size_bytes, "size_bytes": image.size_bytes}
    elif image.state == ImageState.FAILED:
        return refusal(GONE, WrongState(f"find upload {upload}", "it has failed"))
    else:
        state = ask_node(image, "image.state", {"token": token})
    return answer(200, {"Upload-Offset": str(state["offset"]), "Upload-Length": str(state["size_bytes"])})


@blueprint.patch(f"{PATH}/<upload>")
@endpoint(NoBody, answer=None, upload=True, body=OFFSET_OCTETS, status=204)
def append_to_upload(given: Given, upload: str) -> Response:
    """Send the next chunk (tus): Upload-Offset, and Upload-Checksum as `sha256 <base64>`."""
    with patient_with_caller():
        result = refuse_version() or refuse_body() or take_chunk(given, upload)
    # The upload has its row; one for each chunk would bury the others.
    g.audited = result.status_code < 400
    return result


@blueprint.delete(f"{PATH}/<upload>")
@endpoint(NoParameters, answer=None, status=204)
def end_upload(given: Given, upload: str) -> Response:
    """End an upload (tus); nothing of it is left."""
    refused = refuse_version()
    if refused is not None:
        return refused
    image, _ = find_upload(upload)
    if image.state == ImageState.READY:
        return refusal(GONE, WrongState(f"end upload {upload}", "it is complete: delete the image"))
    if image.state == ImageState.FAILED:
        forget(image)
    else:
        ask_node(image, "image.end", {})
    return answer(204)


def take_chunk(given: Given, upload: str) -> Response:
    """Pass a chunk on to the node that has the upload."""
    what = f"upload {upload}"
    offset = number_header("Upload-Offset", given)
    checksum = checksum_header(given)
    given.require_ok(what)
    image, token = find_upload(upload)
    if image.state != ImageState.IMPORTING:
        return ended_upload(image, offset)
    taken = ask_node(image, "image.append", {"token": token, "offset": offset, "checksum": checksum})
    return chunk_answer(image, send_chunk(taken["offer"], what) if "offer" in taken else taken)


# ---- the request


def refuse_version() -> Response | None:
    if request.headers.get("Tus-Resumable") == VERSION:
        return None
    error = WrongInput(f"{request.method} {request.path}", f"the header Tus-Resumable must be {VERSION}")
    return refusal(PRECONDITION_FAILED, error, {"Tus-Version": VERSION})


def refuse_body() -> Response | None:
    what = f"{request.method} {request.path}"
    if request.mimetype != OFFSET_OCTETS:
        return refusal(WRONG_TYPE, WrongInput(what, f"its Content-Type must be {OFFSET_OCTETS}"))
    if (request.content_length or 0) > MOST_CHUNK_BYTES:
        error = WrongInput(what, f"a chunk has at most {MOST_CHUNK_BYTES} bytes", "send smaller chunks")
        return refusal(TOO_LARGE, error)
    return None


def metadata_given() -> Given:
    """The parameters of Upload-Metadata, checked like those of any request; they stand in the audit row."""
    text = request.headers.get("Upload-Metadata", "")
    problems = []
    raw = dict(raw_parameters(has_body=False))
    for part in text[:MOST_METADATA_BYTES].split(",") if text.strip() else []:
        key, _, value = part.strip().partition(" ")
        try:
            raw[key] = [*raw.get(key, []), base64.b64decode(value, validate=True).decode()]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            problems.append(key[:64] or "Upload-Metadata")
        if "\0" in key or any("\0" in str(item) for item in raw.get(key, [])):
            raw.pop(key, None)
            problems.append("Upload-Metadata")
    g.raw_parameters = raw
    given = parse(UploadMetadata, has_body=False)
    for key in problems:
        given.add(key, "must be a key and its value, UTF-8 in base64")
    return given


def number_header(name: str, given: Given, least: int = 0) -> int:
    text = request.headers.get(name, "")
    number = int(text) if NUMBER.fullmatch(text) else -1
    if not least <= number <= MOST_BYTES:
        given.add(name, f"must be a whole number of at least {least}" if text else "is missing")
    return number


def checksum_header(given: Given) -> list[str] | None:
    """[algorithm, hexadecimal digest]; a wrong one becomes a problem."""
    text = request.headers.get("Upload-Checksum")
    if text is None:
        return None
    algorithm, _, encoded = text.partition(" ")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if CHECKSUMS.get(algorithm) != len(digest):
        given.add(
            "Upload-Checksum", f"must be one of {', '.join(CHECKSUMS)}, a blank, and the digest in base64"
        )
    return [algorithm, digest.hex()]


def chunk_pieces(what: str) -> Iterator[bytes]:
    """The body as it comes. Raises WrongInput when it breaks off or is too long."""
    left = MOST_CHUNK_BYTES
    while True:
        try:
            piece = request.stream.read(CHUNK_BYTES)
        except TimeoutError as exc:
            raise WrongInput(what, "next to nothing of the chunk came for too long") from exc
        except (OSError, ClientDisconnected) as exc:
            raise WrongInput(what, "the caller went away before the whole chunk had come") from exc
        if not piece:
            return
        left -= len(piece)
        if left < 0:
            raise WrongInput(what, f"a chunk has at most {MOST_CHUNK_BYTES} bytes", "send smaller chunks")
        yield piece


# ---- the node


def find_upload(upload: str) -> tuple[Image, str]:
    """The image of an upload's address, and the address's secret part. Raises NotFound."""
    found = UPLOAD_ID.fullmatch(upload)
    with reading() as session:
        image = session.get(Image, int(found[1])) if found else None
    token = str(image.document.get("upload", "")) if image is not None else ""
    if found is None or not token or not hmac.compare_digest(token, found[2]):
        raise NotFound(f"find upload {upload}", "there is no such upload, or it has ended", "begin anew")
    assert image is not None
    return image, token


def ask_node(image: Image, verb: str, arguments: dict[str, Any]) -> Any:
    """The answer of the node that has the upload. Raises Busy when there is none."""
    node = (image.owner or "").partition("/")[0]
    with node_may_return(f"upload image {image.name}"):
        return call_node(services().queue, node, verb, {"image_id": image.id, **arguments}, ANSWER_TIMEOUT_S)


@contextlib.contextmanager
def node_may_return(what: str) -> Iterator[None]:
    """A node daemon that is restarted answers again in a moment; then it knows what it still has."""
    try:
        yield
    except NoAnswer as exc:
        hint = "try again: if the node daemon was restarted, the upload has ended, and begins anew"
        raise Busy(what, f"the node that takes it does not answer: {exc.why}", hint) from exc


def send_chunk(offer: dict[str, Any], what: str) -> Any:
    with node_may_return(what), connect(Offer(**offer), what) as channel:
        sender = Sender(channel)
        sent = 0
        for piece in chunk_pieces(what):
            sender.write(piece)
            sent += len(piece)
        if request.content_length is not None and sent < request.content_length:
            raise WrongInput(what, "the caller went away before the whole chunk had come")
        sender.finish()
        return channel.receive_answer()


def forget(image: Image) -> None:
    """Remove the row of an upload whose error the caller has been told."""
    with contextlib.suppress(PvcError), services().database.session() as session:
        row = session.get(Image, image.id, with_for_update=True)
        if row is not None and row.state == ImageState.FAILED and not row.volumes:
            session.delete(row)


# ---- the answer


def answer(status: int, headers: dict[str, str] | None = None) -> Response:
    made = Response(status=status, headers={**HEADERS, **(headers or {})})
    made.content_type = "text/plain"
    return made


def refusal(status: int, error: PvcError, headers: dict[str, str] | None = None) -> Response:
    made = jsonify(error.to_dict())
    made.status_code = status
    made.headers.extend({**HEADERS, **(headers or {})})
    return made


def chunk_answer(image: Image, taken: dict[str, Any]) -> Response:
    """What the node said of a chunk. Raises what made the whole upload fail."""
    if "failed" in taken:
        forget(image)
        raise error_from_dict(taken["failed"])
    headers = {"Upload-Offset": str(taken["offset"])}
    if taken.get("refused") == "checksum":
        error = WrongInput(
            f"upload image {image.name}", "the chunk is not what its checksum says", "send it again"
        )
        return refusal(CHECKSUM_MISMATCH, error, headers)
    if taken.get("refused"):
        why = f"the next chunk begins at {taken['offset']}"
        return refusal(CONFLICT, WrongState(f"upload image {image.name}", why), headers)
    return answer(204, headers)


def ended_upload(image: Image, offset: int | None) -> Response:
    """A chunk for an upload that has ended, well or not."""
    if image.state == ImageState.READY:
        if offset == image.size_bytes and not request.content_length:
            return answer(204, {"Upload-Offset": str(offset)})
        return chunk_answer(image, {"refused": "offset", "offset": image.size_bytes})
    return chunk_answer(image, {"failed": image.error})
