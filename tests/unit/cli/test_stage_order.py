"""Log lines and ends of stages come out in order, with the server's times."""

from typing import Any

from cli_fake_api import ACCEPTED, FakeApi, event_stream, log_event, task

from pvc.stage_order import StageOrder
from pvc.tasks import LogLine, StateChange, log_line


def stage(name: str, seconds: float | None) -> dict[str, Any]:
    finished = None if seconds is None else "2025-01-01T00:00:02Z"
    return {"stage": name, "started": "2025-01-01T00:00:01Z", "finished": finished, "seconds": seconds}


def state(*stages: tuple[str, float | None], **changes: Any) -> dict[str, Any]:
    found = [stage(*one) for one in stages]
    return task(changes.pop("state", "RUNNING"), stages=found, **changes)


def shown(*happenings: Any) -> list[str]:
    """What comes out: messages of lines, and `stage=seconds` for ends, `!` for the failed one."""
    order, result = StageOrder(), list[str]()
    for happening in happenings:
        found = StateChange(happening) if "state" in happening else log_line(happening)
        result += [text_of(one) for one in order.take(found)]
    return result + [text_of(one) for one in order.rest()]


def text_of(one: Any) -> str:
    return one.message if isinstance(one, LogLine) else f"{one.stage}={one.seconds}{'!' * one.failed}"


def test_lines_that_came_before_their_state_wait_for_it() -> None:
    assert shown(
        log_event(1, "a", "load"),
        state(("load", None)),
        log_event(2, "b", "prepare"),
        log_event(3, "c", "install"),
        state(("load", 1.5), ("setup", 0.02), ("prepare", 2.0), ("install", None)),
        log_event(4, "d", "install"),
    ) == ["a", "load=1.5", "setup=0.02", "b", "prepare=2.0", "c", "d"]


def test_a_state_older_than_the_lines_does_not_release_them() -> None:
    assert shown(
        state(("load", None)),
        log_event(1, "b", "install"),
        state(("load", 1.0), ("setup", None)),
        state(("load", 1.0), ("setup", 0.1), ("install", None)),
    ) == ["load=1.0", "setup=0.1", "b"]


def test_a_build_that_was_still_waiting_does_not_release_them() -> None:
    queued = state(state="PENDING")
    assert shown(
        queued,
        log_event(1, "a", "collect"),
        log_event(2, "b", "create"),
        queued,
        state(("collect", 0.1), ("create", None)),
    ) == ["a", "collect=0.1", "b"]


def test_lines_of_an_unknown_stage_are_not_held_for_ever() -> None:
    first, second = state(("load", None), percent=1), state(("load", None), percent=2)
    order = StageOrder()
    for happening in (StateChange(first), log_line(log_event(1, "x", "odd")), StateChange(first)):
        assert list(order.take(happening)) == []
    assert [text_of(one) for one in order.take(StateChange(second))] == ["x"]


def test_the_failed_stage_is_marked_and_what_follows_is_shown_at_once() -> None:
    undoing = state(
        ("load", 1.0), ("install", 3.0), build_state="undoing", error={"stage": "install", "what": "x"}
    )
    assert shown(
        state(("load", 1.0), ("install", None)),
        log_event(1, "working", "install"),
        log_event(2, "releasing", "cleanup"),
        undoing,
        log_event(3, "undone", "undo"),
    ) == ["load=1.0", "working", "install=3.0!", "releasing", "undone"]


def test_nothing_is_lost_when_no_state_ever_comes() -> None:
    assert shown(log_event(1, "a", "load"), log_event(2, "b", "setup")) == ["a", "b"]


def test_a_server_that_tells_no_stages_holds_nothing_up() -> None:
    old = {"state": "RUNNING", "current": 1, "total": 2, "status": "x"}
    assert shown(old, log_event(1, "a", "load")) == ["a"]


def test_plain_progress_has_every_stage_with_the_servers_time(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/create"] = ACCEPTED
    done = state(("setup", 0.25), ("create", 0.04), ("install", 61.0), state="SUCCESS")
    api.answers["GET /tasks/b1/log"] = event_stream(
        ("log", log_event(1, "one", "setup")),
        ("state", state(("setup", None), stage="setup", status="running setup")),
        ("log", log_event(2, "two", "install")),
        ("state", state(("setup", 0.25), ("create", 0.04), ("install", None), status="running install")),
        ("log", log_event(3, "three", "install")),
        ("end", done),
    )
    lines = pvc_run("provisioner", "create", "web1", "debian12").err.splitlines()
    assert lines[1:9] == [
        "[setup] running setup",
        "[setup] one",
        "[setup] took 0.2 s",
        "[create] took <0.1 s",
        "[install] running install",
        "[install] two",
        "[install] three",
        "[install] took 1:01",
    ]


def test_lines_after_a_final_state_are_not_lost(api: FakeApi, pvc_run: Any) -> None:
    """The server says the state after each batch of lines; only `end` comes after all of them."""
    api.answers["POST /provisioner/create"] = ACCEPTED
    done = state(("install", 1.0), state="SUCCESS")
    api.answers["GET /tasks/b1/log"] = event_stream(
        ("log", log_event(1, "one")), ("state", done), ("log", log_event(2, "two")), ("end", done)
    )
    result = pvc_run("provisioner", "create", "web1", "debian12")
    assert result.code == 0
    assert "[install] two" in result.err


def test_a_status_of_any_length_stays_a_line(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/create"] = ACCEPTED
    long = state(("setup", None), stage="setup", status="s" * 10_000)
    api.answers["GET /tasks/b1/log"] = event_stream(("state", long), ("end", task()))
    lines = pvc_run("provisioner", "create", "web1", "debian12").err.splitlines()
    assert lines[1] == "[setup] " + "s" * 199 + "…"
