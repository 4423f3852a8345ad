"""Fetches a file by http or https and writes it to standard output.

`python3 -m pvccommon.images.fetcher URL NETWORK…`, run without rights but with the network (see
`pvcnoded.imports.confined`). First comes a line of JSON, {"size_bytes"} or {"error"}, then the file. NETWORKs
are those it may connect to although they are of this host, or link-local: an operator who may name a URL must
not reach what only this host reaches.
"""

import http.client
import ipaddress
import json
import socket
import ssl
import sys
from collections.abc import Collection, Sequence
from typing import IO, Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from pvccommon.errors import EnvironmentFault, Forbidden, PvcError, WrongInput

MOST_REDIRECTS: Final = 5
TIMEOUT_S: Final = 60.0  # for each answer and each piece
PIECE_BYTES: Final = 256 * 1024
LONGEST_URL: Final = 4096
LONGEST_LENGTH: Final = 30  # digits
REDIRECTS: Final = (301, 302, 303, 307, 308)
PORTS: Final = {"http": 80, "https": 443}
HEADERS: Final = {"User-Agent": "pvc", "Accept-Encoding": "identity", "Connection": "close"}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str) -> SplitResult:
    """The parts of an http or https URL. Raises WrongInput."""
    what = "fetch the image"
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise WrongInput(what, "the URL is too long, or has characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        if parts.port == 0:  # others are checked when they are asked for
            raise ValueError("port 0 is none")
    except ValueError as exc:
        raise WrongInput(what, f"the URL is malformed: {exc}") from exc
    if parts.scheme not in PORTS or not parts.hostname:
        raise WrongInput(what, "only http:// and https:// are fetched", "give a whole URL")
    if parts.username is not None or parts.password is not None:
        raise WrongInput(what, "the URL holds a user name or password, which would stand in lists and logs")
    return parts


def resolve(host: str, port: int, allowed: Collection[Network]) -> list[tuple[Any, Any]]:
    """[(family, socket address)] of a host, all of which may be connected to. Raises Forbidden."""
    what = f"fetch the image from {host}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise EnvironmentFault(what, f"its address is not known: {exc}") from exc
    for family, _, _, _, address in found:
        if not is_allowed(str(address[0]), family, allowed):
            why = f"{address[0]} is an address of this node, or not a public or private one"
            raise Forbidden(what, why, "an administrator can allow it: images.fetch_from")
    return [(family, address) for family, _, _, _, address in found]


def is_allowed(text: str, family: int, allowed: Collection[Network]) -> bool:
    """Whether an address may be connected to."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    if any(address in network for network in allowed):
        return True
    special = address.is_loopback or address.is_link_local or address.is_multicast
    special = special or address.is_unspecified or address.is_reserved
    return not special and not is_own(address)


def is_own(address: Address) -> bool:
    """Whether this host has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def open_url(url: str, allowed: Collection[Network]) -> http.client.HTTPResponse:
    """The answer to a GET, redirections followed. Raises PvcError."""
    for _ in range(MOST_REDIRECTS + 1):
        parts = check_url(url)
        answer = request(parts, allowed)
        if answer.status not in REDIRECTS:
            return answer
        url = redirected(url, answer.headers.get("Location", ""))
        answer.close()
    raise WrongInput("fetch the image", f"it is redirected more than {MOST_REDIRECTS} times")


def redirected(url: str, location: str) -> str:
    """Where a redirection leads. Raises WrongInput."""
    try:
        return urljoin(url, location)
    except ValueError as exc:
        raise WrongInput("fetch the image", f"it is redirected to a malformed URL: {exc}") from exc


def request(parts: SplitResult, allowed: Collection[Network]) -> http.client.HTTPResponse:
    """One request, to an address that has been checked."""
    host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
    target = parts.path or "/"
    target += f"?{parts.query}" if parts.query else ""
    what = f"fetch the image from {host}"
    try:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection.sock = connect(parts.scheme, host, resolve(host, port, allowed))
        connection.request("GET", target, headers=HEADERS)
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as exc:
        raise EnvironmentFault(what, f"{type(exc).__name__}: {exc}") from exc


def connect(scheme: str, host: str, addresses: Sequence[tuple[Any, Any]]) -> socket.socket:
    """A connection to the first address that takes one."""
    error: OSError = OSError("no address")
    for family, address in addresses:
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.settimeout(TIMEOUT_S)
        try:
            plain.connect(address)
            if scheme == "http":
                return plain
            return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except OSError as exc:
            plain.close()
            error = exc
    raise error


def size_of(answer: http.client.HTTPResponse) -> int:
    """Bytes of the file. Raises WrongInput."""
    what = "fetch the image"
    if answer.status != 200:
        raise WrongInput(what, f"the server answers {answer.status} {ascii(answer.reason)[1:-1][:80]}")
    length = answer.headers.get("Content-Length", "")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise WrongInput(what, "the server sends it compressed, although asked not to")
    if len(length) > LONGEST_LENGTH:
        raise WrongInput(what, f"the server gives it a length of {len(length)} digits")
    if not length.isdecimal() or not 0 < int(length) < 1 << 60:
        raise WrongInput(what, "the server does not say how long the file is", "upload it instead")
    return int(length)


def fetch(url: str, allowed: Collection[Network], sink: IO[bytes]) -> int:
    """Write the line and the file; the exit code."""
    try:
        answer = open_url(url, allowed)
        size_bytes = size_of(answer)
    except PvcError as exc:
        sink.write(json.dumps({"error": exc.to_dict()}).encode() + b"\n")
        return 1
    sink.write(json.dumps({"size_bytes": size_bytes}).encode() + b"\n")
    sink.flush()
    try:
        while piece := answer.read(PIECE_BYTES):
            sink.write(piece)
    except (OSError, http.client.HTTPException):
        return 2  # what is missing tells the rest
    return 0


def main(arguments: list[str]) -> int:
    url, *networks = arguments
    allowed = [ipaddress.ip_network(network) for network in networks]
    with open(1, "wb", closefd=False) as sink:
        return fetch(url, allowed, sink)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
