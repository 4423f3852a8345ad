"""The old worker's configuration: scripts only hand it to open_zk, so there is nothing in it."""

from typing import Any

config: dict[str, Any] = {}
