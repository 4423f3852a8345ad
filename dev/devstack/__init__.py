"""The whole system on one machine, for trying and testing. `dev/stack` is its command line.

with temporary_stack(settings={"builds": {"lease_s": 5}}) as stack:
    stack.environment()["PVC_API_URL"]
"""

from devstack.stack import Stack, temporary_stack
from devstack.state import DEFAULT_ROOT, default_path

__all__ = ["DEFAULT_ROOT", "Stack", "default_path", "temporary_stack"]
