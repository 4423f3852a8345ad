"""What a builder script declares about itself, read from its source without running a line of it.

A script is parsed into a syntax tree; the class `VMBuilderScript` is looked at for its doc string,
`api_version`, `cacheable`, `answers_mib`, and `arguments`, a tuple of `Argument(...)` calls holding literals
only.
"""

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from pvccommon.errors import Problem, WrongInput
from pvccommon.patterns import Budget, check_pattern, fits

CLASS_NAME = "VMBuilderScript"
STAGES = ("setup", "create", "prepare", "install", "cleanup")
API_VERSIONS = (1,)
MAX_SOURCE_BYTES = 1024 * 1024
LEGACY_MODULES = ("daemon_lib", "pvcworkerd")
ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
TRUE_WORDS = ("true", "yes", "y", "on", "t", "1")
FALSE_WORDS = ("false", "no", "n", "off", "f", "0")
REDACTED = "<redacted>"
MAX_ARGUMENTS = 256
MAX_ANSWERS_MIB = 256


@dataclass(frozen=True)
class Argument:
    """A declared argument; `default` has the declared type (list: list of strings)."""

    name: str
    type: str = "string"
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()
    pattern: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    help: str = ""
    secret: bool = False


@dataclass(frozen=True)
class Declaration:
    """All that is known of a script without running it."""

    summary: str
    description: str
    api_version: int | None
    legacy: bool
    cacheable: bool
    sha256: str
    arguments: tuple[Argument, ...] = field(default=())
    answers_mib: int = 0  # size of the CD-ROM the script fills with answers for an installer; 0: none

    def to_dict(self) -> dict[str, Any]:
        """JSON shape, as stored in `Script.declaration`."""
        return cast(dict[str, Any], _plain(asdict(self)))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Declaration":
        arguments = tuple(Argument(**{**a, "choices": tuple(a["choices"])}) for a in document["arguments"])
        return cls(**{**document, "arguments": arguments})


def read_declaration(source: str) -> Declaration:
    """Parse a script. Raises WrongInput naming every problem: a syntax error, no class, bad declarations."""
    what = "read the builder script"
    if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise WrongInput(what, problems=[Problem("script", f"is larger than {MAX_SOURCE_BYTES} bytes")])
    try:
        tree = ast.parse(source)
        compile(source, "script", "exec", dont_inherit=True)
    except SyntaxError as exc:
        raise WrongInput(
            what, problems=[Problem(f"script line {exc.lineno or 0}", f"does not compile: {exc.msg}")]
        ) from exc
    except (ValueError, RecursionError, MemoryError, OverflowError) as exc:
        raise WrongInput(what, problems=[Problem("script", f"does not compile: {exc}")]) from exc
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASS_NAME]
    if len(classes) != 1:
        hint = "define `class VMBuilderScript(VMBuilder):` once, at module level"
        found = f"defines {len(classes)} classes" if classes else "has no class"
        raise WrongInput(what, problems=[Problem("script", f"{found} {CLASS_NAME}")], hint=hint)
    return _read_class(classes[0], tree, source)


def type_arguments(
    declaration: Declaration, texts: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """Turn `key=value` texts into typed values; the last of equal keys counts.

    Returns (typed values, the plain texts by key, problems). Secrets are among the values: split them
    off with `split_secrets` before anything is stored or shown.
    """
    plain, problems = _split_texts(texts)
    if declaration.legacy:
        return dict(plain), plain, problems
    known = {argument.name: argument for argument in declaration.arguments}
    for name in plain:
        if name not in known:
            takes = ", ".join(known) or "none"
            problems.append(Problem(f"arguments.{name}", f"unknown argument; the script takes: {takes}"))
    values: dict[str, Any] = {}
    budget = Budget()
    for name, argument in known.items():
        if name not in plain:
            if argument.required:
                problems.append(
                    Problem(f"arguments.{name}", f"is missing ({argument.help or argument.type})")
                )
            values[name] = argument.default
            continue
        try:
            values[name] = _typed(argument, plain[name], budget)
        except ValueError as exc:
            problems.append(Problem(f"arguments.{name}", str(exc)))
    return values, plain, problems


def split_secrets(
    declaration: Declaration, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values with secrets masked, the secrets)."""
    names = {argument.name for argument in declaration.arguments if argument.secret}
    secrets = {name: value for name, value in values.items() if name in names and value not in (None, "", [])}
    return {name: REDACTED if name in secrets else value for name, value in values.items()}, secrets


def mask_texts(declaration: Declaration, texts: Iterable[str]) -> list[str]:
    """`key=value` texts with the values of secret arguments masked."""
    names = {argument.name for argument in declaration.arguments if argument.secret}
    return [
        f"{text.partition('=')[0]}={REDACTED}" if text.partition("=")[0] in names else text for text in texts
    ]


def _split_texts(texts: Iterable[str]) -> tuple[dict[str, str], list[Problem]]:
    plain: dict[str, str] = {}
    problems: list[Problem] = []
    for index, text in enumerate(texts):
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(Problem(f"arguments[{index}]", f"{text!r} has no '='; write key=value"))
        elif not ARGUMENT_NAME.fullmatch(name):
            problems.append(Problem(f"arguments[{index}]", f"{name!r} is not the name of an argument"))
        elif wrong := _wrong_characters(value):
            problems.append(Problem(f"arguments.{name}", wrong))
        else:
            plain[name] = value
    return plain, problems


def _typed(argument: Argument, text: str, budget: Budget) -> Any:
    value = _CONVERT[argument.type](text)
    _require_allowed(argument, value if isinstance(value, list) else [value], budget)
    return value


def _require_allowed(argument: Argument, items: Iterable[Any], budget: Budget) -> None:
    """Raise ValueError for the first item that the argument does not allow."""
    for item in items:
        if argument.choices and item not in argument.choices:
            raise ValueError(f"{item!r} is not one of {', '.join(map(str, argument.choices))}")
        if argument.pattern is not None and not fits(argument.pattern, str(item), budget):
            raise ValueError(f"{item!r} does not match {argument.pattern}")
        if argument.minimum is not None and item < argument.minimum:
            raise ValueError(f"{item} is too small; must be at least {argument.minimum}")
        if argument.maximum is not None and item > argument.maximum:
            raise ValueError(f"{item} is too large; must be at most {argument.maximum}")


def _to_integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _to_boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in (*TRUE_WORDS, *FALSE_WORDS):
        raise ValueError(f"{text!r} is neither true nor false")
    return word in TRUE_WORDS


def _to_list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


_CONVERT: dict[str, Callable[[str], Any]] = {
    "string": str,
    "integer": _to_integer,
    "boolean": _to_boolean,
    "list": _to_list,
}
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "list": (list, tuple),
}


def _read_class(node: ast.ClassDef, tree: ast.Module, source: str) -> Declaration:
    problems: list[Problem] = []
    assigned = _assignments(node)
    legacy = "api_version" not in assigned and _imports_legacy(tree)
    doc = ast.get_docstring(node) or ast.get_docstring(tree) or ""
    summary, _, description = doc.partition("\n")
    declaration = Declaration(
        summary=summary.strip(),
        description=description.strip(),
        api_version=None if legacy else _read_version(assigned.get("api_version"), problems),
        legacy=legacy,
        cacheable=_read_cacheable(assigned.get("cacheable"), problems),
        sha256=hashlib.sha256(source.encode()).hexdigest(),
        arguments=tuple(_read_arguments(assigned.get("arguments"), problems)),
        answers_mib=_read_answers_mib(assigned.get("answers_mib"), problems),
    )
    if not node.bases:
        problems.append(Problem(f"script line {node.lineno}", f"{CLASS_NAME} must derive from VMBuilder"))
    problems.extend(_check_methods(node))
    problems.extend(_check_texts(declaration.to_dict(), ""))
    if problems:
        raise WrongInput("read the builder script", problems=problems, hint="see docs/writing-a-builder.md")
    return declaration


def _assignments(node: ast.ClassDef) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            found.update({t.id: statement.value for t in statement.targets if isinstance(t, ast.Name)})
        elif (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            found[statement.target.id] = statement.value
    return found


def _imports_legacy(tree: ast.Module) -> bool:
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return any(name.split(".")[0] in LEGACY_MODULES for name in names)


def _check_methods(node: ast.ClassDef) -> Iterable[Problem]:
    for method in node.body:
        if isinstance(method, ast.AsyncFunctionDef) and method.name in STAGES:
            yield Problem(f"script line {method.lineno}", f"{method.name} must not be async")
        elif isinstance(method, ast.FunctionDef) and method.name in STAGES:
            required = len(method.args.posonlyargs + method.args.args) - len(method.args.defaults)
            if required != 1 and not method.decorator_list:
                yield Problem(f"script line {method.lineno}", f"{method.name} must take no argument but self")


def _read_version(node: ast.expr | None, problems: list[Problem]) -> int | None:
    if node is None:
        problems.append(
            Problem("api_version", f"is missing; write `api_version = {API_VERSIONS[-1]}` in the class")
        )
        return None
    version = _literal(node, "api_version", problems)
    if type(version) is not int or version not in API_VERSIONS:
        problems.append(Problem("api_version", f"must be one of {', '.join(map(str, API_VERSIONS))}"))
        return None
    return version


def _read_cacheable(node: ast.expr | None, problems: list[Problem]) -> bool:
    value = True if node is None else _literal(node, "cacheable", problems)
    if not isinstance(value, bool):
        problems.append(Problem("cacheable", "must be True or False"))
        return False
    return value


def _read_answers_mib(node: ast.expr | None, problems: list[Problem]) -> int:
    value = 0 if node is None else _literal(node, "answers_mib", problems)
    if type(value) is not int or not 0 <= value <= MAX_ANSWERS_MIB:
        problems.append(Problem("answers_mib", f"must be a whole number from 0 to {MAX_ANSWERS_MIB}"))
        return 0
    return value


def _read_arguments(node: ast.expr | None, problems: list[Problem]) -> list[Argument]:
    if node is None:
        return []
    if not isinstance(node, ast.Tuple | ast.List):
        problems.append(Problem("arguments", "must be a tuple of Argument(...)"))
        return []
    found = [_read_argument(item, f"arguments[{i}]", problems) for i, item in enumerate(node.elts)]
    if len(found) > MAX_ARGUMENTS:
        problems.append(Problem("arguments", f"are more than {MAX_ARGUMENTS}"))
    arguments = [argument for argument in found if argument]
    names = [argument.name for argument in arguments]
    problems.extend(
        Problem("arguments", f"{name} is declared twice")
        for name in sorted({n for n in names if names.count(n) > 1})
    )
    return arguments


def _read_argument(node: ast.expr, path: str, problems: list[Problem]) -> Argument | None:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)):
        problems.append(Problem(path, "must be Argument(...)"))
        return None
    called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
    if called != "Argument" or len(node.args) != 1 or any(keyword.arg is None for keyword in node.keywords):
        problems.append(Problem(path, "must be Argument(name, key=literal, …)"))
        return None
    before = len(problems)
    values = {str(k.arg): _literal(k.value, f"{path}.{k.arg}", problems) for k in node.keywords}
    name = _literal(node.args[0], f"{path}.name", problems)
    unknown = set(values) - set(Argument.__dataclass_fields__) - {"name"}
    problems.extend(Problem(f"{path}.{key}", "is not a property of an argument") for key in sorted(unknown))
    if len(problems) > before:
        return None
    if not isinstance(name, str) or not ARGUMENT_NAME.fullmatch(name):
        problems.append(Problem(f"{path}.name", f"{name!r} is not a name of letters, digits, '_' and '-'"))
        return None
    problems.extend(Problem(f"{path}.{key}", message) for key, message in _check_values(values))
    if len(problems) > before:
        return None
    default = (
        list(values["default"]) if isinstance(values.get("default"), tuple | list) else values.get("default")
    )
    if values.get("type") == "list" and default is None:
        default = []
    return Argument(
        **{**values, "name": name, "default": default, "choices": tuple(values.get("choices", ()))}
    )


def _check_values(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Problems of one declaration as (property, message)."""
    kind = values.get("type", "string")
    if kind not in _PYTHON_TYPES:
        yield "type", f"must be one of {', '.join(_PYTHON_TYPES)}"
        return
    for name, wanted in (("required", bool), ("secret", bool), ("help", str)):
        if not isinstance(values.get(name, wanted()), wanted):
            yield name, f"must be {wanted.__name__}"
    wrong = [*_check_choices(kind, values), *_check_limits(kind, values), *_check_pattern(kind, values)]
    yield from wrong
    yield from _check_default(kind, values, None if wrong else _limits(values))


def _check_choices(kind: str, values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    choices = values.get("choices", ())
    if not isinstance(choices, tuple | list):
        yield "choices", "must be a tuple"
    elif kind == "boolean" and choices:
        yield "choices", "a boolean has none"
    elif not all(_is_item(kind, choice) for choice in choices):
        yield "choices", f"must be values of {'the items' if kind == 'list' else f'type {kind}'}"


def _check_limits(kind: str, values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    least, most = values.get("minimum"), values.get("maximum")
    for name, limit in (("minimum", least), ("maximum", most)):
        if limit is not None and (type(limit) is not int or kind != "integer"):
            yield name, "must be a whole number, for arguments of type integer"
    if type(least) is int and type(most) is int and least > most:
        yield "minimum", f"{least} is more than the maximum, {most}"


def _check_pattern(kind: str, values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    pattern = values.get("pattern")
    if pattern is None:
        return
    if not isinstance(pattern, str) or kind not in ("string", "list"):
        yield "pattern", "must be a regular expression as a text, for arguments of type string or list"
        return
    try:
        check_pattern(pattern)
    except ValueError as exc:
        yield "pattern", str(exc)


def _limits(values: Mapping[str, Any]) -> Argument:
    """What a default has to keep to."""
    kept = {key: values[key] for key in ("choices", "pattern", "minimum", "maximum") if key in values}
    return Argument("", **kept)


def _check_default(
    kind: str, values: Mapping[str, Any], limits: Argument | None
) -> Iterable[tuple[str, str]]:
    default = values.get("default")
    if default is None:
        return
    if values.get("required") is True:
        yield "default", "is of no use: the argument is required"
    items = list(default) if kind == "list" and isinstance(default, tuple | list) else [default]
    if not isinstance(default, _PYTHON_TYPES[kind]) or not all(_is_item(kind, item) for item in items):
        yield "default", f"{default!r} is not of type {kind}"
    elif limits:
        try:
            _require_allowed(limits, items, Budget())
        except ValueError as exc:
            yield "default", str(exc)


def _is_item(kind: str, value: Any) -> bool:
    """Whether a value is of an argument's type, or for a list: may be in it."""
    wanted = {"string": str, "list": str, "integer": int, "boolean": bool}[kind]
    return type(value) is wanted


def _check_texts(value: Any, path: str) -> Iterable[Problem]:
    """Neither the database nor an answer can hold these, not even where they are escaped in the source."""
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _check_texts(element, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from _check_texts(element, f"{path}[{index}]")
    elif isinstance(value, str) and (wrong := _wrong_characters(value)):
        yield Problem(path, wrong)


def _wrong_characters(text: str) -> str:
    """What is wrong with the characters of a text; empty when nothing is."""
    if "\0" in text:
        return "holds a NUL character"
    return "holds half of a surrogate pair" if re.search("[\ud800-\udfff]", text) else ""


def _literal(node: ast.expr, path: str, problems: list[Problem]) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        problems.append(Problem(path, "must be a literal, so that it can be read without running the script"))
        return None


def _plain(value: Any) -> Any:
    """Tuples to lists, as JSON would have it."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
