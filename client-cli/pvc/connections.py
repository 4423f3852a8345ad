"""Where the API is: the connection store, the cluster configuration for `local`, and the environment.

The store is `pvc.json`, a map from name to {description, host, port, scheme, api_key}; `local` maps to
{cfgfile}, the cluster's own configuration file. It holds keys, so it is written with mode 0600.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pvc.errors import CliError, WrongInput

LOCAL = "local"
DEFAULT_PORT = 7370
DEFAULT_CONFIG = "/etc/pvc/pvc.conf"
API_PREFIX = "/api/v1"
# A listener on every address is reached through loopback.
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True)
class Connection:
    """One API server. `api_key` may be empty: the server then has to allow anonymous access."""

    name: str
    description: str
    host: str
    port: int
    scheme: str
    api_key: str = ""
    verify: bool = True

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __repr__(self) -> str:
        """Without the key, which must not end up in a log."""
        return f"Connection({self.name!r}, {self.url!r})"


def store_path(environ: Mapping[str, str] | None = None) -> Path:
    """The store's file: `$PVC_CLIENT_DIR`, else `$HOME/.config/pvc`, else a folder for temporary files."""
    environ = os.environ if environ is None else environ
    if environ.get("PVC_CLIENT_DIR"):
        folder = Path(environ["PVC_CLIENT_DIR"])
    elif environ.get("HOME"):
        folder = Path(environ["HOME"]) / ".config" / "pvc"
    else:
        folder = Path(tempfile.gettempdir()) / f"pvc-{os.getuid()}"
    return folder / "pvc.json"


class ConnectionStore:
    """Reads and rewrites `pvc.json`; a missing file is a store that knows only `local`."""

    def __init__(self, path: Path, config: str | None = None) -> None:
        self.path = path
        self.config = config

    def entries(self) -> dict[str, dict[str, Any]]:
        """Every stored entry by name, `local` always among them."""
        return {LOCAL: {"cfgfile": self.config or DEFAULT_CONFIG}, **self._stored()}

    def get(self, name: str) -> Connection:
        entries = self.entries()
        if name not in entries:
            known = ", ".join(sorted(entries))
            raise CliError(
                f"no connection is named {name!r}",
                hint=f"known are: {known}; `pvc connection add` makes one",
                kind="not-found",
            )
        return self._connection(name, entries[name])

    def all(self) -> Iterator[tuple[str, Connection | CliError]]:
        """Each connection, or the reason why it cannot be used."""
        for name, entry in sorted(self.entries().items()):
            try:
                yield name, self._connection(name, entry)
            except CliError as error:
                yield name, error

    def add(self, connection: Connection) -> None:
        """Store a new connection or replace the one of this name."""
        entry = asdict(connection)
        del entry["name"], entry["verify"]
        self._write({**self._stored(), connection.name: entry})

    def remove(self, name: str) -> None:
        stored = self._stored()
        if name not in stored:
            raise CliError(f"no stored connection is named {name!r}", kind="not-found")
        del stored[name]
        self._write(stored)

    def _stored(self) -> dict[str, dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CliError("cannot read the connection store", why=str(error), kind="environment") from error
        try:
            stored = json.loads(text)
        except ValueError as error:
            stored = error
        if not isinstance(stored, dict) or not all(isinstance(entry, dict) for entry in stored.values()):
            raise CliError(
                f"cannot understand the connection store {self.path}",
                why=str(stored) if isinstance(stored, ValueError) else "it is not a map of connections",
                hint="correct it or move it away, then add the connections again",
                kind="environment",
            )
        return stored

    def _connection(self, name: str, entry: Mapping[str, Any]) -> Connection:
        if "cfgfile" in entry:
            config = self.config if name == LOCAL else None
            return connection_from_config(config or str(entry["cfgfile"]))
        try:
            return Connection(
                name=name,
                description=str(entry.get("description") or ""),
                host=str(entry["host"]),
                port=int(entry.get("port") or DEFAULT_PORT),
                scheme=str(entry.get("scheme") or "http"),
                api_key=str(entry.get("api_key") or ""),
                verify=verify_tls(),
            )
        except (KeyError, ValueError) as error:
            raise CliError(
                f"cannot use the stored connection {name!r}",
                why=f"its entry lacks or garbles {error}",
                hint=f"`pvc connection remove {name}` and add it again",
                kind="environment",
            ) from error

    def _write(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the file in one step; it is never readable by others, not even while being written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".pvc-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(stored, file, indent=2)
                file.write("\n")
            os.replace(temporary, self.path)
        except OSError as error:
            raise CliError(
                "cannot write the connection store",
                why=str(error),
                hint="PVC_CLIENT_DIR names another folder for it",
                kind="environment",
            ) from error


def verify_tls(environ: Mapping[str, str] | None = None) -> bool:
    """Certificates are verified unless `PVC_CLIENT_VERIFY_SSL` says otherwise."""
    environ = os.environ if environ is None else environ
    return environ.get("PVC_CLIENT_VERIFY_SSL", "True").lower() in ("true", "yes", "on", "1", "")


def connection_from_url(url: str, api_key: str, name: str = "environment") -> Connection:
    """The connection of `PVC_API_URL` and `PVC_API_KEY`; a trailing `/api/v1` is allowed."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    path = parts.path.rstrip("/")
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or port == -1
        or path not in ("", API_PREFIX)
    ):
        raise WrongInput(
            f"{url!r} is not the address of an API",
            hint=f"PVC_API_URL looks like http://127.0.0.1:{DEFAULT_PORT}",
        )
    return Connection(
        name=name,
        description="from PVC_API_URL",
        host=parts.hostname,
        port=port or (443 if parts.scheme == "https" else DEFAULT_PORT),
        scheme=parts.scheme,
        api_key=api_key,
        verify=verify_tls(),
    )


def connection_from_config(path: str) -> Connection:
    """The API of this machine, read from the cluster configuration (YAML).

    Only the `api` section is looked at. The token is the first line of `api.authentication.token_file`;
    `api.token[0].token` of older files works, too. The certificate is not verified: the listener is ours.
    """
    api = _section(_load_yaml(path), "api")
    listen, authentication = _section(api, "listen"), _section(api, "authentication")
    address = str(listen.get("address") or "")
    try:
        port = int(listen.get("port") or DEFAULT_PORT)
    except ValueError as error:
        raise CliError(
            f"cannot use the configuration {path}", why=f"api.listen.port: {error}", kind="environment"
        ) from error
    return Connection(
        name=LOCAL,
        description="local cluster",
        host=LOOPBACK_OF.get(address, address),
        port=port,
        scheme="https" if _section(api, "ssl").get("enabled") else "http",
        api_key=_local_token(api, authentication) if authentication.get("enabled", True) else "",
        verify=False,
    )


def _load_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CliError(
            f"cannot read the cluster configuration {path}",
            why=error.strerror or str(error),
            hint="on another machine: `pvc connection add NAME -a HOST -k KEY`, then `pvc -c NAME …`; "
            "or set PVC_API_URL and PVC_API_KEY",
            kind="environment",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise CliError(f"cannot understand the configuration {path}", why=why, kind="environment") from error
    return content if isinstance(content, dict) else {}


def _section(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _local_token(api: Mapping[str, Any], authentication: Mapping[str, Any]) -> str:
    token_file = authentication.get("token_file")
    if token_file:
        return _read_token(str(token_file))
    tokens = api.get("token")
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], dict):
        return str(tokens[0].get("token") or "")
    return ""


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip().partition("\n")[0]
    except OSError as error:
        raise CliError(
            f"cannot read the API token file {path}",
            why=error.strerror or str(error),
            hint="run as the user who may read it, or set PVC_API_KEY and PVC_API_URL",
            kind="environment",
        ) from error
