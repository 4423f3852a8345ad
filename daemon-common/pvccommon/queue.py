"""The Celery application: one queue of builds and one of short commands for each node.

Tasks carry ids; the rows are the truth. Builds are acknowledged late and may be delivered twice: the
lease on the build's row decides who runs it.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import quote

from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeout
from kombu.exceptions import OperationalError

from pvccommon.config import Queue, read_secret
from pvccommon.errors import EnvironmentFault, NoAnswer, error_from_dict

BUILD_TASK = "pvc.build"
COMMAND_TASK = "pvc.command"
SEND_TIMEOUT_S = 3  # for a connection, and again for an answer; who waits for us is told within some seconds

# A sender gives up soon; workers, which have the options of `create_celery`, wait for Redis to come back.
SEND_OPTIONS = {"socket_timeout": SEND_TIMEOUT_S, "max_retries": 1, "interval_start": 0, "interval_step": 0}


def build_queue(node: str) -> str:
    return f"node.{node}"


def command_queue(node: str) -> str:
    return f"command.{node}"


def create_celery(config: Queue) -> Celery:
    """The application both daemons use; connects when first used."""
    password = quote(read_secret(config.password_file), safe="")
    url = f"redis://:{password}@{config.host}:{config.port}/{config.database}"
    app = Celery("pvc", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": config.visibility_timeout_s,
            "socket_timeout": 30,
            "socket_connect_timeout": SEND_TIMEOUT_S,
            "socket_keepalive": True,
        },
        redis_socket_connect_timeout=SEND_TIMEOUT_S,
        redis_socket_timeout=SEND_TIMEOUT_S,
        # Else Celery tries for 19 seconds before it says that there is no Redis.
        result_backend_transport_options={"retry_policy": {"max_retries": 3, "timeout": 1}},
        result_expires=300,
        enable_utc=True,
    )
    return app


def send_build(app: Celery, build_id: str, node: str) -> None:
    """Put a committed build into its node's queue; safe to repeat. Raises EnvironmentFault."""
    _send(app, BUILD_TASK, [build_id], build_queue(node), task_id=build_id, ignore_result=True)


def call_node(app: Celery, node: str, verb: str, arguments: dict[str, Any], timeout_s: float = 30) -> Any:
    """Have a node do something short (`verb` of pvcnoded.command) and return its JSON answer.

    Raises the node's own error, or NoAnswer when the node does not answer in time; then the
    command has expired and will not run later.
    """
    result = _send(
        app, COMMAND_TASK, [verb, arguments], command_queue(node), expires=timeout_s, ignore_result=False
    )
    try:
        answer = cast(dict[str, Any], result.get(timeout=timeout_s))
    except CeleryTimeout as exc:
        with suppress(Exception):
            result.forget()
        raise NoAnswer(
            f"{verb} on node {node}", f"no answer within {timeout_s:g} s", "is pvc-node running there?"
        ) from exc
    except Exception as exc:
        raise EnvironmentFault(f"{verb} on node {node}", str(exc)) from exc
    finally:
        _let_go(result)
    if "error" in answer:
        raise error_from_dict(answer["error"])
    return answer["result"]


def _let_go(result: Any) -> None:
    """Do now what the destructor of a result does, which asks Redis, and raises when that is gone."""
    with suppress(Exception):
        result.backend.remove_pending_result(result)
    result.backend = None


def _send(app: Celery, task: str, arguments: list[Any], queue: str, **options: Any) -> Any:
    try:
        with app.connection_for_write(transport_options=SEND_OPTIONS) as connection:
            return app.send_task(task, arguments, queue=queue, connection=connection, retry=False, **options)
    except (OperationalError, OSError) as exc:
        raise EnvironmentFault(
            "send a task", f"the queue does not answer: {exc}", "is Redis running?"
        ) from exc


def queue_length(app: Celery, name: str) -> int:
    """Tasks that wait in a queue, without those a worker has taken. Raises EnvironmentFault."""
    return int(_look(app, lambda redis: redis.llen(name)))


def oldest_task(app: Celery, name: str) -> bytes | None:
    """The message that a worker of the queue takes next; None when none waits. Raises EnvironmentFault."""
    return cast(bytes | None, _look(app, lambda redis: redis.lindex(name, -1)))


def _look(app: Celery, ask: Callable[[Any], Any]) -> Any:
    try:
        with app.connection_for_read(transport_options=SEND_OPTIONS) as connection:
            return ask(connection.default_channel.client)
    except (OperationalError, OSError) as exc:
        raise EnvironmentFault("look into the queue", str(exc), "is Redis running?") from exc
