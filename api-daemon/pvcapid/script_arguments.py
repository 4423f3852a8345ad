"""Arguments of builder scripts as requests carry them (`key=value`), and the masking of secret ones."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pvcapid.parameters import Given
from pvccommon.declarations import REDACTED, Declaration, mask_texts, type_arguments
from pvccommon.errors import Problem
from pvccommon.models import Script


def declaration_of(script: Script) -> Declaration:
    return Declaration.from_dict(script.declaration)


def problems(declaration: Declaration, texts: Iterable[str]) -> list[Problem]:
    """What is wrong with a profile's arguments; those still missing can come with the request to build."""
    optional = tuple(replace(argument, required=False) for argument in declaration.arguments)
    return type_arguments(replace(declaration, arguments=optional), texts)[2]


def masked(script: Script, texts: Iterable[str]) -> list[str]:
    return mask_texts(declaration_of(script), texts)


def without_secrets(declaration: Declaration, texts: Iterable[str]) -> list[str]:
    """Only the texts of arguments that are declared, and not as secret."""
    plain = {argument.name for argument in declaration.arguments if not argument.secret}
    return [text for text in texts if _name(text) in plain]


def restore_secrets(
    declaration: Declaration, before: Declaration | None, given: Given, kept: Sequence[str]
) -> list[str]:
    """`given["arg"]` with each `<redacted>` of a secret replaced by the value kept so far.

    A client that shows a profile for editing sends back what it was shown. The value is put back only for an
    argument that the script keeps secret, or else a change of scripts could reveal it.
    """
    values = {_name(text): text for text in kept}
    secret = _secret_names(declaration)
    was_secret = _secret_names(before) if before else set()
    restored = []
    for text in given["arg"]:
        name = _name(text)
        if text == f"{name}={REDACTED}" and name in secret | was_secret:
            if name in values and name in secret:
                restored.append(values[name])
            else:
                given.add(
                    f"arguments.{name}", f"{REDACTED} stands for a value that is not kept; give the value"
                )
        else:
            restored.append(text)
    return restored


def keep_secret(declaration: Declaration, before: Declaration, given: Given, kept: Sequence[str]) -> None:
    """When the script changes and the arguments do not: what was secret must stay so."""
    for name in sorted({_name(text) for text in kept} & _secret_names(before) - _secret_names(declaration)):
        given.add(
            f"arguments.{name}", "is secret now and would not be with the new script; give all arguments anew"
        )


def _secret_names(declaration: Declaration) -> set[str]:
    return {argument.name for argument in declaration.arguments if argument.secret}


def _name(text: str) -> str:
    return text.partition("=")[0]
