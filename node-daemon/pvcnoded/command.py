"""Short commands the API sends to a node: each answers with plain JSON, within seconds.

Who offers commands is a class with `verbs()`; `run_command` finds the verb.
"""

import logging
from collections.abc import Callable, Mapping

from pvccommon.errors import Internal, PvcError, WrongInput
from pvccommon.models import Json

Verbs = Mapping[str, Callable[[Json], Json]]
logger = logging.getLogger("pvc.commands")


def run_command(verbs: Verbs, verb: str, arguments: Json) -> Json:
    """The answer of one verb; raises WrongInput for one this node does not know."""
    if verb not in verbs:
        raise WrongInput(f"run {verb}", f"this node knows only: {', '.join(verbs)}", "update pvc-node-daemon")
    return verbs[verb](arguments)


def answer_command(verbs: Verbs, verb: str, arguments: Json) -> Json:
    """{"result": …} or {"error": PvcError.to_dict()}."""
    try:
        return {"result": run_command(verbs, verb, arguments)}
    except PvcError as exc:
        return {"error": exc.to_dict()}
    except Exception as exc:
        logger.exception("command %s failed", verb)
        return {"error": Internal(f"run {verb}", f"{type(exc).__name__}: {exc}").to_dict()}
