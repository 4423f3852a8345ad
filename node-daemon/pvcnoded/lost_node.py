"""A node that has gone, and what another can undo in its place: volumes of pools that both have.

Domains, volumes of the node's own and the VM's row wait until it returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pvccommon.kept_volumes import VOLUME


@dataclass(frozen=True)
class LostNode:
    """`shared_pools`: names of the pools of which this node sees the same volumes."""

    name: str
    shared_pools: frozenset[str]

    def may_undo(self, kind: str, name: str) -> bool:
        """Whether a thing the lost node has made can be undone from here."""
        return kind == VOLUME and name.partition("/")[0] in self.shared_pools

    def waiting_text(self, left: Sequence[tuple[str, str]]) -> str:
        """For the status of a build: why it has not ended yet. `left`: (kind, name) of what is pending."""
        busy = [name for kind, name in left if self.may_undo(kind, name)]
        waiting = [_words(kind, name) for kind, name in left if not self.may_undo(kind, name)]
        parts = [f"volume {name} is still open or cannot be reached" for name in busy]
        parts += [f"waiting for node {self.name}: {', '.join(waiting)}"] if waiting else []
        return "; ".join(parts)


def _words(kind: str, name: str) -> str:
    """Names of domains and VMs in the journal carry what tells them from others of the same name."""
    return f"{kind} {name if kind == VOLUME else name.partition('/')[0]}"
