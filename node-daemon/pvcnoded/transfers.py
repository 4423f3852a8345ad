"""This node's end of transfers (pvccommon/transfer.py): it listens, for one caller and for some seconds."""

import hmac
import logging
import secrets
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from pvccommon.config import Node
from pvccommon.errors import Busy, EnvironmentFault, Internal, PvcError, TimedOut
from pvccommon.models import Json
from pvccommon.run import run
from pvccommon.transfer import IDLE_S, TICKET_BYTES, Channel, Offer, Type, fingerprint

OFFER_S = 15.0  # how long an offer can be taken
GREETING_S = 3.0  # for the handshake and the ticket of one that has connected
LONGEST_TICKET = 128
OPENSSL_TIMEOUT_S = 30
logger = logging.getLogger("pvc.transfers")

Serve = Callable[[Channel], Json]


class Transfers:
    """Makes offers, and serves each in a thread of its own; not more than configured at one time."""

    def __init__(self, settings: Node, idle_s: float = IDLE_S, offer_s: float = OFFER_S) -> None:
        self._settings = settings
        self._idle_s = idle_s
        self._offer_s = offer_s
        self._free = threading.BoundedSemaphore(settings.transfers)
        self._making = threading.Lock()

    def offer(self, what: str, serve: Serve) -> Json:
        """An offer as JSON; `serve` gets the channel of whoever takes it, and its result is the answer.

        Raises Busy when too many are under way.
        """
        if not self._free.acquire(blocking=False):
            why = f"{self._settings.transfers} transfers are under way on node {self._settings.name}"
            raise Busy(what, why, "try again later, or raise node.transfers in its configuration")
        try:
            with self._making:
                identity = self._identity
            listener = self._listen(what)
        except BaseException:
            self._free.release()
            raise
        ticket = secrets.token_hex(TICKET_BYTES)
        port = int(listener.getsockname()[1])
        arguments = (listener, identity.context, ticket, what, serve)
        threading.Thread(target=self._run, args=arguments, name=what, daemon=True).start()
        return Offer(self._settings.transfer_address, port, ticket, identity.fingerprint).to_json()

    @cached_property
    def _identity(self) -> "Identity":
        return Identity()

    def _listen(self, what: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.transfer_address else socket.AF_INET
        for port in ports(self._settings.transfer_ports):
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self._settings.transfer_address, port))
                listener.listen(4)
            except OSError as exc:
                listener.close()
                reason = exc.strerror or str(exc)
            else:
                return listener
        where = f"{self._settings.transfer_address} port {self._settings.transfer_ports or 'any'}"
        raise EnvironmentFault(what, f"cannot listen on {where}: {reason}", "see node.transfer_address")

    def _run(
        self, listener: socket.socket, context: ssl.SSLContext, ticket: str, what: str, serve: Serve
    ) -> None:
        try:
            with listener:
                channel = self._accept(listener, context, ticket, what)
            with channel:
                self._serve(channel, what, serve)
        except PvcError as exc:
            logger.warning("%s: %s", what, exc.message)
        except Exception:
            logger.exception("%s failed", what)
        finally:
            self._free.release()

    def _accept(self, listener: socket.socket, context: ssl.SSLContext, ticket: str, what: str) -> Channel:
        """The channel of the one with the ticket; who has none is shown the door."""
        deadline = time.monotonic() + self._offer_s
        while (left_s := deadline - time.monotonic()) > 0:
            listener.settimeout(left_s)
            try:
                plain, _ = listener.accept()
            except TimeoutError:
                break
            try:
                return self._greet(plain, context, ticket, what)
            except (OSError, PvcError) as exc:
                logger.warning("%s: a caller was refused: %s", what, exc)
        raise TimedOut(what, f"nobody came with the ticket within {self._offer_s:g} s")

    def _greet(self, plain: socket.socket, context: ssl.SSLContext, ticket: str, what: str) -> Channel:
        plain.settimeout(GREETING_S)
        with plain:  # does nothing once it has been wrapped
            connection = context.wrap_socket(plain, server_side=True)
        try:
            frame = Channel(connection, what, GREETING_S).receive(LONGEST_TICKET)
            if frame.type is not Type.TICKET or not hmac.compare_digest(frame.data, ticket.encode()):
                raise EnvironmentFault(what, "wrong ticket")
            return Channel(connection, what, self._idle_s)
        except BaseException:
            connection.close()
            raise

    def _serve(self, channel: Channel, what: str, serve: Serve) -> None:
        try:
            answer: Json = {"result": serve(channel)}
        except PvcError as exc:
            logger.warning("%s: %s", what, exc.message)
            answer = {"error": exc.to_dict()}
        except Exception as exc:
            logger.exception("%s failed", what)
            answer = {"error": Internal(what, f"{type(exc).__name__}: {exc}").to_dict()}
        channel.send_answer(answer)
        channel.drain()


class Identity:
    """A key and a certificate that nobody has signed, for as long as this process lives."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            key, certificate = (str(Path(directory) / name) for name in ("key.pem", "certificate.pem"))
            curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
            files = ["-keyout", key, "-out", certificate, "-days", "36500", "-subj", "/CN=pvc-node"]
            run(["openssl", "req", "-x509", *curve, *files], timeout_s=OPENSSL_TIMEOUT_S)
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
            # Nobody comes twice; and what a sender finds readable shall be an answer.
            self.context.num_tickets = 0
            self.context.load_cert_chain(certificate, key)
            text = Path(certificate).read_text()
        self.fingerprint = fingerprint(ssl.PEM_cert_to_DER_cert(text))


def ports(text: str | None) -> Iterable[int]:
    """The ports of a text such as "7400-7499"; 0, any free one, for none."""
    if not text:
        return (0,)
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
