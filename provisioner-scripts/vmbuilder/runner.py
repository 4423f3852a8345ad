"""The main program inside the sandbox: load one builder script and run its stages when the worker says so.

    worker → {"type":"load","script":"…","context":{…}}   answer: done or failed, stage "load"
    worker → {"type":"stage","stage":"setup"}             answer: done (create: with the domain document) or
    failed worker → {"type":"exit"}

The script is imported here and nowhere else. Nothing in this process is trusted by the worker.
"""

import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from vmbuilder import log, session
from vmbuilder.builder import VMBuilder
from vmbuilder.channel import Channel, ChannelClosed, JsonObject
from vmbuilder.context import Context
from vmbuilder.errors import ClusterError, ProvisioningError, ValidationError
from vmbuilder.version import API_VERSION, OLDEST_API_VERSION

STAGES: Final = ("setup", "create", "prepare", "install", "cleanup")
DESCRIPTOR_VARIABLE: Final = "PVC_CHANNEL_FD"

_MODULE: Final = "installer_script"
_FILE: Final = "builder_script.py"
# Characters of an error's texts: a script's exception may hold a whole file.
_MESSAGE_LIMIT: Final = 10_000
_TRACEBACK_LIMIT: Final = 100_000
_CLASS_LIMIT: Final = 200
# What neither UTF-8 nor a database's text can hold.
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")


def main() -> int:
    """Serve the worker until it says exit or goes away."""
    log.open_log()
    descriptor = os.environ.pop(DESCRIPTOR_VARIABLE, "")
    if not descriptor.isdecimal():
        log.write(
            log.Level.ERROR, f"vmbuilder.runner is started by the worker, with {DESCRIPTOR_VARIABLE} set"
        )
        return 2
    os.umask(0o022)
    os.chdir("/")
    try:
        Runner(Channel.from_descriptor(int(descriptor))).serve()
    except ChannelClosed as exc:
        log.write(log.Level.ERROR, f"build runner stopped: {exc}")
        return 1
    return 0


class Runner:
    """Holds the script's object between the messages."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._builder: VMBuilder | None = None
        self._pid = os.getpid()

    def serve(self) -> None:
        """Answer messages until the worker says exit or closes the channel."""
        while (message := self._channel.receive()) is not None and message["type"] != "exit":
            if message["type"] == "load":
                self._answer("load", partial(self._load, message))
            elif message["type"] == "stage" and message.get("stage") in STAGES:
                self._answer(message["stage"], partial(self._run_stage, message["stage"]))
            else:
                raise ChannelClosed(f"unknown message {message['type']!r}")

    def _answer(self, stage: str, action: Callable[[], JsonObject | None]) -> None:
        """Do the work of one message and send its outcome; every exception of the script ends here."""
        try:
            outcome = {"type": "done", "stage": stage, "result": action()}
        except ChannelClosed:
            raise
        except BaseException as exc:  # a script may also call sys.exit()
            outcome = {"type": "failed", "stage": stage, "error": describe(exc)}
        self._end_stray_child()
        try:
            self._channel.send(outcome)
        except ClusterError as exc:  # the result is longer than a message may be
            self._channel.send({"type": "failed", "stage": stage, "error": describe(exc)})

    def _end_stray_child(self) -> None:
        """A child that the script forked, and that has come back here, must not go on as a second runner."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _load(self, message: JsonObject) -> None:
        context = Context.from_json(message.get("context") or {})
        self._builder = make_builder(str(message.get("script") or ""), context, self._channel)

    def _run_stage(self, stage: str) -> JsonObject | None:
        if self._builder is None:
            raise ProvisioningError("no script was loaded")
        result = getattr(self._builder, stage)()
        if stage != "create":
            return None
        if not isinstance(result, str):
            raise ProvisioningError(
                f"create() must return the domain document as text, not {type(result).__name__}"
            )
        return {"domain_xml": result}


def make_builder(source: str, context: Context, channel: Channel | None = None) -> VMBuilder:
    """Import the script's source and make its object. Raises whatever the script raises."""
    session.open_session(channel, context)
    module = load_module(source)
    script_class = getattr(module, "VMBuilderScript", None)
    if not isinstance(script_class, type) or not issubclass(script_class, VMBuilder):
        raise ValidationError("the script has no class VMBuilderScript derived from VMBuilder")
    check_api_version(script_class.api_version)
    builder = script_class.__new__(script_class)
    builder.attach(context, channel)
    # Calling __init__ by itself gives a script's own constructor the plan and the log from its first line.
    builder.__init__(  # type: ignore[misc]
        vm_name=context.vm_name, vm_id=context.vm_id, vm_profile=context.vm_profile, vm_data=context.vm_data
    )
    return builder


def load_module(source: str) -> types.ModuleType:
    """Execute a script's source as a module. Its lines are remembered so that tracebacks can show them."""
    module = types.ModuleType(_MODULE)
    module.__file__ = _FILE
    linecache.cache[_FILE] = (len(source), None, source.splitlines(keepends=True), _FILE)
    sys.modules[_MODULE] = module
    exec(compile(source, _FILE, "exec", dont_inherit=True), module.__dict__)
    return module


def check_api_version(version: int | None) -> None:
    """Refuse a script written for an interface this package does not have; None: a script of the old kind."""
    if version is not None and not OLDEST_API_VERSION <= version <= API_VERSION:
        known = " to ".join(dict.fromkeys((str(OLDEST_API_VERSION), str(API_VERSION))))
        raise ValidationError(f"the script needs api_version {version}; this node offers {known}")


def describe(exc: BaseException) -> dict[str, Any]:
    """An exception as the protocol's error object, with the script's own part of the traceback.

    It always fits into a message, whatever the exception holds.
    """
    message = "the script called exit()" if isinstance(exc, SystemExit) else _words(exc)
    name = _fit(type(exc).__name__, _CLASS_LIMIT)
    return {
        "class": name,
        "message": _fit(message, _MESSAGE_LIMIT) or name,
        "traceback": _fit(_script_traceback(exc), _TRACEBACK_LIMIT),
    }


def _words(exc: BaseException) -> str:
    """The exception's own text; empty when it cannot say it."""
    try:
        return str(exc)
    except Exception:
        return ""


def _script_traceback(exc: BaseException) -> str:
    """The formatted traceback from the first frame of the script on (all of it when there is none)."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != _FILE:
        trace = trace.tb_next
    shown = exc.with_traceback(trace) if trace is not None else exc
    try:
        return "".join(traceback.format_exception(shown))
    except Exception as failure:
        return f"(the traceback cannot be formatted: {type(failure).__name__})"


def _fit(text: str, limit: int) -> str:
    """The text with its middle cut out when it is too long, and without what cannot be stored."""
    if len(text) > limit:
        cut = len(text) - limit
        text = f"{text[: limit // 2]} … {cut} characters cut … {text[-(limit // 2) :]}"
    return _UNFIT.sub("\ufffd", text)


if __name__ == "__main__":
    sys.exit(main())
