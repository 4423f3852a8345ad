"""What a builder script says about one of its arguments."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

ArgumentType = Literal["string", "integer", "boolean", "list"]
Value = str | int | bool | Sequence[str]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_PYTHON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "list": (tuple, list),
}


@dataclass(frozen=True)
class Argument:
    """One argument of a builder script.

    The declaration is read from the script's source without running it, so every value has to be a literal.
    `choices`, `pattern` (a regular expression the whole value has to match) apply to strings and to each item
    of a list; `minimum` and `maximum` to integers. A secret's value is masked in logs and answers of the API.
    Raises ValueError when the declaration contradicts itself.
    """

    name: str
    type: ArgumentType = "string"
    default: Value | None = None
    required: bool = False
    choices: Sequence[str | int] = ()
    pattern: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    help: str = ""
    secret: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"argument name {self.name!r}: must be letters, digits, _ and -, beginning with a letter"
            )
        if self.type not in _PYTHON_TYPES:
            raise ValueError(f"argument {self.name}: type must be one of {', '.join(_PYTHON_TYPES)}")
        if self.required and self.default is not None:
            raise ValueError(f"argument {self.name}: a required argument has no default")
        self._check_limits()
        if self.default is not None:
            self.check(self.default)

    def _check_limits(self) -> None:
        if self.type != "integer" and (self.minimum is not None or self.maximum is not None):
            raise ValueError(f"argument {self.name}: minimum and maximum are for integers")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"argument {self.name}: minimum is greater than maximum")
        if self.type == "boolean" and self.choices:
            raise ValueError(f"argument {self.name}: a boolean has no choices")
        if self.pattern is not None:
            if self.type not in ("string", "list"):
                raise ValueError(f"argument {self.name}: pattern is for strings and lists")
            try:
                re.compile(self.pattern)
            except re.error as exc:
                raise ValueError(f"argument {self.name}: pattern is no regular expression: {exc}") from exc

    def check(self, value: Value) -> None:
        """Raise ValueError when `value` (already of the argument's type) is not allowed."""
        wanted = _PYTHON_TYPES[self.type]
        if not isinstance(value, wanted) or (self.type == "integer" and isinstance(value, bool)):
            raise ValueError(f"argument {self.name}: must be of type {self.type}")
        for item in value if isinstance(value, (tuple, list)) else (value,):
            self._check_item(item)

    def _check_item(self, item: object) -> None:
        if self.type == "list" and not isinstance(item, str):
            raise ValueError(f"argument {self.name}: items of a list are strings")
        if self.choices and item not in self.choices:
            raise ValueError(f"argument {self.name}: must be one of {', '.join(map(str, self.choices))}")
        if isinstance(item, str) and self.pattern is not None and not re.fullmatch(self.pattern, item):
            raise ValueError(f"argument {self.name}: {self._shown(item)} does not match {self.pattern}")
        if isinstance(item, int) and not isinstance(item, bool):
            self._check_range(item)

    def _check_range(self, number: int) -> None:
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"argument {self.name}: must be at least {self.minimum}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"argument {self.name}: must be at most {self.maximum}")

    def _shown(self, item: str) -> str:
        return "the value" if self.secret else repr(item)
