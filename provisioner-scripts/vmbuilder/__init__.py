"""What a builder script imports: the base class, argument declarations and the errors it may raise.

A builder script is one Python file with a class `VMBuilderScript(VMBuilder)`. It runs inside a sandbox as
root of its own user namespace; everything outside is reached through the methods and modules of this package.
The guide is docs/writing-a-builder.md.
"""

from vmbuilder.argument import Argument
from vmbuilder.builder import VMBuilder
from vmbuilder.errors import ClusterError, CommandFailed, ProvisioningError, ValidationError
from vmbuilder.version import API_VERSION

__all__ = [
    "API_VERSION",
    "Argument",
    "ClusterError",
    "CommandFailed",
    "ProvisioningError",
    "VMBuilder",
    "ValidationError",
]
