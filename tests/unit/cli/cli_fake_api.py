"""A small API with canned answers in the shapes of the contract, and a record of what it was asked."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.datastructures import FileStorage

Answer = Any


@dataclass(frozen=True)
class Asked:
    """One request as the API saw it."""

    method: str
    raw_path: str
    query: dict[str, list[str]]
    form: dict[str, list[str]]
    json: Any
    headers: dict[str, str]
    files: dict[str, FileStorage]


@dataclass
class FakeApi:
    """`answers["GET /vm"]` is what a request gets.

    It is JSON, (JSON, status), a Response, a function giving one of these, an exception to raise in place of
    the network, or `Steps` of them.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def requests_to(self, route: str) -> list[Asked]:
        method, _, path = route.partition(" ")
        return [one for one in self.asked if one.method == method and one.raw_path == "/api/v1" + path]

    def app(self) -> Flask:
        app = Flask("fake")
        app.config["PROPAGATE_EXCEPTIONS"] = True

        @app.route("/<path:_>", methods=["GET", "POST", "PUT", "DELETE"])
        def answer(_: str) -> Any:
            raw_path = request.environ["RAW_URI"]
            self.asked.append(
                Asked(
                    method=request.method,
                    raw_path=raw_path,
                    query=request.args.to_dict(flat=False),
                    form=request.form.to_dict(flat=False),
                    json=request.get_json(silent=True),
                    headers=dict(request.headers),
                    files={name: kept(file) for name, file in request.files.items()},
                )
            )
            return self._answer(f"{request.method} {raw_path.removeprefix('/api/v1')}")

        return app

    def _answer(self, route: str) -> Any:
        if route not in self.answers:
            return jsonify(message=f"nothing at {route}"), 404
        answer = self.answers[route]
        if isinstance(answer, Steps):
            answer = answer.next()
        if isinstance(answer, Callable):  # type: ignore[arg-type]
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Response):
            return answer
        content, status = answer if isinstance(answer, tuple) else (answer, 200)
        return jsonify(content), status


def kept(file: FileStorage) -> FileStorage:
    """An uploaded file that can be read after the request."""
    return FileStorage(io.BytesIO(file.read()), file.filename, file.name, headers=file.headers)


class Steps:
    """Answers in order; the last one is given for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)

    def next(self) -> Answer:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def event_stream(*events: tuple[str, Any], then: BaseException | None = None) -> Callable[[], Response]:
    """A server-sent event stream; `then` breaks it at its end."""

    def body() -> Iterator[str]:
        yield ": hello\n\n"
        for name, data in events:
            identity = f"id: {data['seq']}\n" if name == "log" else ""
            yield f"{identity}event: {name}\ndata: {json.dumps(data)}\n\n"
        if then is not None:
            raise then

    return lambda: Response(body(), mimetype="text/event-stream")


def html(status: int, text: str = "<html>gateway</html>") -> Callable[[], Response]:
    return lambda: Response(text, status=status, mimetype="text/html")


def log_event(seq: int, message: str, stage: str = "install", level: str = "info") -> dict[str, Any]:
    return {"seq": seq, "time": "2025-01-01T00:00:00Z", "stage": stage, "level": level, "message": message}


def task(state: str = "SUCCESS", **changes: Any) -> dict[str, Any]:
    """The JSON of GET /tasks/{id}."""
    build_state = {"PENDING": "queued", "RUNNING": "running", "SUCCESS": "succeeded", "FAILURE": "failed"}[
        state
    ]
    return {
        "id": "b1",
        "state": state,
        "build_state": build_state,
        "current": 3,
        "total": 11,
        "percent": 30,
        "status": "VM web1 is ready",
        "vm": "web1",
        "profile": "debian12",
        "node": "hv1",
        "stage": "install",
        "created": "2025-01-01T00:00:00Z",
        "started": "2025-01-01T00:00:01Z",
        "finished": None,
        "error": None,
        "stages": [{"stage": "setup", "started": None, "finished": "2025-01-01T00:00:02Z", "seconds": 0.5}],
        **changes,
    }


ACCEPTED = ({"task_id": "b1", "task_name": "provisioner.create", "run_on": "hv1"}, 202)
