"""What servers answer, and where they send one to."""

import http.client
import io
from typing import Any

import pytest

from pvccommon.errors import WrongInput
from pvccommon.images.fetcher import check_url, redirected, size_of


class Wire:
    """As much of a socket as an answer is read from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> Any:
        return io.BytesIO(self._data)


def answer(status: str, *headers: str) -> http.client.HTTPResponse:
    found = http.client.HTTPResponse(Wire("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()))  # type: ignore[arg-type]
    found.begin()
    return found


def test_the_length_of_the_file() -> None:
    assert size_of(answer("200 OK", "Content-Length: 7")) == 7


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        ("404 Not Found", ("Content-Length: 7",), "the server answers 404 Not Found"),
        ("200 OK", (), "does not say how long"),
        ("200 OK", ("Content-Length: 0",), "does not say how long"),
        ("200 OK", ("Content-Length: many",), "does not say how long"),
        ("200 OK", (f"Content-Length: {1 << 70}",), "does not say how long"),
        ("200 OK", ("Content-Length: " + "9" * 5000,), "gives it a length of 5000 digits"),
        ("200 OK", ("Content-Length: 7", "Content-Encoding: gzip"), "sends it compressed"),
    ],
)
def test_other_answers_are_refused(status: str, headers: tuple[str, ...], reason: str) -> None:
    with pytest.raises(WrongInput, match=reason):
        size_of(answer(status, *headers))


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/other", "http://one/other"),
        ("//two/x", "http://two/x"),
        ("", "http://one/image"),
        ("file:///etc/shadow", "file:///etc/shadow"),
    ],
)
def test_redirections(location: str, leads_to: str) -> None:
    assert redirected("http://one/image", location) == leads_to


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_a_port_that_is_none_is_told_as_that(port: str) -> None:
    with pytest.raises(WrongInput, match=r"malformed.*(?i:port)"):
        check_url(f"http://images.example:{port}/disk.raw")


def test_a_malformed_redirection_is_refused() -> None:
    with pytest.raises(WrongInput, match="redirected to a malformed URL"):
        redirected("http://one/image", "http://[::1/")
