"""The version of the interface between a builder script and this package.

It grows when a script written for the older one might stop working; a script states the one it was written
for as `api_version` in its class.
"""

from typing import Final

API_VERSION: Final = 1
OLDEST_API_VERSION: Final = 1
