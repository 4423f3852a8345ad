"""A PostgreSQL and a Redis of this test run's own, the application on them, and a node that answers."""

import gc
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

with warnings.catch_warnings():  # Debian 12's kombu and apispec use what later Pythons will not have
    warnings.simplefilter("ignore", DeprecationWarning)
    from celery import Celery
    from celery.concurrency.thread import TaskPool
    from celery.worker import state

    from pvcapid.app import create_app
from pvccommon import queue, tokens
from pvccommon.config import Config, Images, parse_config
from pvccommon.config import Node as NodeSettings
from pvccommon.database import Database
from pvccommon.errors import NotFound, PvcError
from pvccommon.models import Base, Node, now
from pvccommon.storage import StoragePool
from pvccommon.storage.directory import DirectoryPool
from pvcnoded.command import answer_command
from pvcnoded.content_commands import ContentCommands
from pvcnoded.image_commands import ImageCommands
from pvcnoded.imports.imports import Imports
from pvcnoded.lease import Owner
from pvcnoded.snapshot_commands import SnapshotCommands
from pvcnoded.transfers import Transfers
from pvcnoded.volume_commands import VolumeCommands

sys.path.append(str(Path(__file__).parents[2]))

PREFIX = "/api/v1"
NODE = "hv1"
OTHER_NODE = "hv5"
POOL = "vms"
SCRIPT = '''
from vmbuilder import Argument, VMBuilder

class VMBuilderScript(VMBuilder):
    """Makes a machine for tests.

    Longer text.
    """
    api_version = 1
    arguments = (
        Argument("release", default="bookworm", choices=("bookworm", "trixie"), help="which release"),
        Argument("count", type="integer", default=1, minimum=1, maximum=9),
        Argument("fast", type="boolean", default=False),
        Argument("password", secret=True, help="hash of the root password"),
        Argument("owner", required=True, help="whose it is"),
    )

    def create(self):
        raise RuntimeError("never run by the API")
'''


# Debian 12's kombu and apispec use what later Pythons will not have; Celery leaves connections open.
FOREIGN_WARNINGS = (
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed <socket:ResourceWarning",
    "ignore:SelectableGroups dict interface:DeprecationWarning",
    "ignore:distutils Version classes:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for warning in FOREIGN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last test here: what Celery has left open must not be found in another test."""
    if nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent):
        gc.collect()


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come up within {seconds:g} s")
        time.sleep(0.05)


def end(process: "subprocess.Popen[bytes]", number: int) -> None:
    process.send_signal(number)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """(socket directory, port) of a server that keeps nothing."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert programs, "PostgreSQL is not installed"
    # Outside pytest's own directory, which others than its owner cannot search.
    directory = Path(f"/tmp/pvc-test-pg-{free_port()}")
    directory.mkdir(mode=0o700)
    shutil.chown(directory, "postgres", "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    data, port = directory / "data", free_port()
    initdb = [
        str(programs[-1] / "initdb"),
        "--no-sync",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
    ]
    subprocess.run([*as_postgres, *initdb, "-D", str(data)], check=True, capture_output=True, cwd="/")
    server = [
        str(programs[-1] / "postgres"),
        "-D",
        str(data),
        "-F",
        "-h",
        "",
        "-k",
        str(directory),
        "-p",
        str(port),
    ]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen([*as_postgres, *server], stdout=log, stderr=log, cwd="/")
    ready = [str(programs[-1] / "pg_isready"), "-q", "-h", str(directory), "-p", str(port)]
    wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL")
    yield str(directory), port
    end(process, 2)
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        "secret",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    directory = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(["redis-server", *options], cwd=directory, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers, "Redis")
    yield port
    end(process, 15)


@pytest.fixture(scope="session")
def settings(
    postgres: tuple[str, int], redis_port: int, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The configuration, as it stands in the file."""
    secret = tmp_path_factory.mktemp("secrets") / "password"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    host, port = postgres
    return {
        "node": {"name": "api1"},
        "database": {
            "host": host,
            "port": port,
            "name": "postgres",
            "user": "postgres",
            "password_file": str(secret),
        },
        "queue": {"port": redis_port, "password_file": str(secret)},
    }


@pytest.fixture(scope="session")
def config(settings: dict[str, Any]) -> Config:
    return parse_config(settings)


@pytest.fixture(scope="session")
def database(config: Config) -> Iterator[Database]:
    database = Database(config.database)
    database.migrate()
    yield database
    database.close()


@pytest.fixture(scope="session")
def app(config: Config, database: Database) -> Iterator[Flask]:
    app = create_app(config)
    yield app
    app.extensions["pvc"].database.close()


@pytest.fixture(autouse=True)
def empty(database: Database) -> Iterator[None]:
    """Every test begins with empty tables."""
    with database.session() as session:
        tables = ", ".join(f'"{name}"' for name in Base.metadata.tables)
        session.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    yield


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A transaction of the test's own; use it after the requests it shall see."""
    with database.session() as session:
        yield session


class Api:
    """A caller with a role. Parameters go into the query string, unless sent as `form`, `json` or `data`."""

    def __init__(self, client: FlaskClient, token: str | None) -> None:
        self.client = client
        self.token = token

    def __call__(self, method: str, path: str, query: Any = None, **options: Any) -> TestResponse:
        headers = {"X-Api-Key": self.token} if self.token else {}
        headers |= options.pop("headers", {})
        if "form" in options:
            options["data"] = options.pop("form")
        return self.client.open(PREFIX + path, method=method, query_string=query, headers=headers, **options)

    def get(self, path: str, query: Any = None, **options: Any) -> TestResponse:
        return self("GET", path, query, **options)

    def post(self, path: str, query: Any = None, **options: Any) -> TestResponse:
        return self("POST", path, query, **options)

    def put(self, path: str, query: Any = None, **options: Any) -> TestResponse:
        return self("PUT", path, query, **options)

    def delete(self, path: str, query: Any = None, **options: Any) -> TestResponse:
        return self("DELETE", path, query, **options)


@pytest.fixture
def caller(app: Flask, database: Database, empty: None) -> Callable[[str], Api]:
    """Make a caller with a role; `none` has no token."""

    def make(role: str) -> Api:
        if role == "none":
            return Api(app.test_client(), None)
        with database.session() as session:
            return Api(app.test_client(), tokens.create_token(session, f"the-{role}", role))

    return make


@pytest.fixture
def api(caller: Callable[[str], Api]) -> Api:
    return caller("admin")


@pytest.fixture
def node(database: Database, empty: None) -> str:
    """A node that has just reported."""
    with database.session() as session:
        session.add(
            Node(
                name=NODE,
                heartbeat=now(),
                started=now(),
                memory_total_mib=16384,
                memory_free_mib=8192,
                vcpus=8,
                load=0.5,
                kernel="6.1.0",
                os="Debian",
                architecture="x86_64",
                version="1.0.0",
                pools={POOL: {"driver": "directory", "total_bytes": 2 << 40, "free_bytes": 1 << 40}},
                networks={"upstream": {"bridge": None, "user": True, "present": True}},
                filesystems=["ext4", "swap"],
                capabilities={
                    "domain": {"type": "qemu", "machine": "q35", "cpu_mode": "maximum", "firmware": "bios"},
                    "vcpus": 8,
                },
            )
        )
    return NODE


class ThreadPool(TaskPool):  # type: ignore[misc]
    """The application waits for answers in this very process."""

    task_join_will_block = False


class FakeNode:
    """What the node of the tests says to the verbs it is sent, and what it was sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.builds: list[str] = []
        self.answers: dict[str, Any] = {}
        self.verbs: dict[str, dict[str, Any]] = {}  # real ones, by node
        self.imports: dict[str, Imports] = {}
        self.image_settings = Images(fetch_from=("127.0.0.0/8",))
        self.reset()

    def reset(self) -> None:
        self.calls.clear()
        self.builds.clear()
        self.verbs.clear()
        self.image_settings = Images(fetch_from=("127.0.0.0/8",))
        self.answers = {
            "volume.find": {"found": None},
            "build.cancel": {},
            "build.discard": {"failures": []},
            "orphans.list": {"orphans": [], "named": []},
            "orphans.remove": {"removed": [], "failed": []},
            "vm.state": {"message": "Done."},
            "vm.remove": {"message": "Removed."},
            "vm.console": {"data": "web1 login: "},
        }

    def build(self, build_id: str) -> None:
        self.builds.append(build_id)

    def command(self, node: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((verb, arguments))
        if verb in self.verbs.get(node, ()):
            return answer_command(self.verbs[node], verb, arguments)
        answer = self.answers.get(verb, NotFound(f"run {verb}", "no such verb"))
        return {"error": answer.to_dict()} if isinstance(answer, PvcError) else {"result": answer}


@pytest.fixture(scope="session")
def node_worker(config: Config) -> Iterator[FakeNode]:
    """A real Celery worker, in a thread."""
    fake = FakeNode()
    celery: Celery = queue.create_celery(config.queue)

    def command(task: Any, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        node = task.request.delivery_info["routing_key"].removeprefix("command.")
        return fake.command(node, verb, arguments)

    celery.task(command, bind=True, name=queue.COMMAND_TASK, ignore_result=False)
    celery.task(fake.build, name=queue.BUILD_TASK)
    celery.finalize()
    celery.set_default()  # a worker that is started in a thread looks for its application there
    worker = celery.WorkController(
        app=celery,
        hostname=f"commands@{NODE}",
        pool_cls=ThreadPool,
        concurrency=4,
        queues=[*map(queue.command_queue, (NODE, OTHER_NODE)), queue.build_queue(NODE)],
        without_heartbeat=True,
        without_mingle=True,
        without_gossip=True,
        loglevel="ERROR",
        # A worker all of whose threads were taken looks for more only when something wakes it.
        ready_callback=lambda _: worker.hub.call_repeatedly(0.1, lambda: None),
    )
    thread = threading.Thread(target=worker.start, daemon=True)
    thread.start()
    yield fake
    state.should_stop = 0
    thread.join(timeout=10)
    state.should_stop = None


@pytest.fixture
def answering(node: str, node_worker: FakeNode) -> FakeNode:
    """A node that has reported and answers."""
    node_worker.reset()
    return node_worker


@pytest.fixture
def serve_pool(answering: FakeNode, database: Database) -> Iterator[Callable[[str, StoragePool], None]]:
    """Let a node of the tests carry out, on a real pool, what the API asks of it."""
    serving: list[Imports] = []

    def serve(node: str, pool: StoragePool) -> None:
        pools = {pool.name: pool}
        volumes, snapshots = VolumeCommands(pools), SnapshotCommands(pools)
        transfers = Transfers(NodeSettings(name=node))
        imports = Imports(answering.image_settings, database, pools, Owner.myself(node))
        serving.append(imports)
        answering.imports[node] = imports
        images = ImageCommands(database, pools, imports, transfers, dead_after=NodeSettings().dead_after)
        answering.verbs[node] = {
            **volumes.verbs(),
            **volumes.slow_verbs(),
            **snapshots.verbs(),
            **snapshots.slow_verbs(),
            **ContentCommands(pools, transfers).verbs(),
            **images.verbs(),
            **images.slow_verbs(),
        }

    yield serve
    for imports in serving:
        imports.end_all(10)


@pytest.fixture
def pool(serve_pool: Callable[[str, StoragePool], None], tmp_path: Path) -> DirectoryPool:
    """The pool `vms` of node hv1."""
    pool = DirectoryPool(POOL, tmp_path / NODE)
    serve_pool(NODE, pool)
    return pool


@pytest.fixture
def parts(api: Api, node: str) -> None:
    """One of everything a profile needs."""
    for path, query in (
        (
            "/provisioner/template/system",
            {"name": "small", "vcpus": 1, "vram": 512, "serial": "True", "vnc": "False"},
        ),
        ("/provisioner/template/network", {"name": "lan"}),
        ("/provisioner/template/network/lan/net/upstream", {}),
        ("/provisioner/template/storage", {"name": "disk"}),
        (
            "/provisioner/template/storage/disk/disk/sda",
            {
                "pool": POOL,
                "disk_size": 4,
                "filesystem": "ext4",
                "filesystem_arg": "-L=root",
                "mountpoint": "/",
            },
        ),
    ):
        expect(api.post(path, query), 200)
    expect(api.post("/provisioner/userdata", {"name": "cloud"}, form={"data": "#cloud-config\n"}), 200)
    expect(api.post("/provisioner/script", {"name": "maker"}, form={"data": SCRIPT}), 200)


@pytest.fixture
def profile(api: Api, parts: None) -> str:
    """A complete profile, with a secret argument."""
    names = {"system_template": "small", "network_template": "lan", "storage_template": "disk"}
    query = {
        "name": "debian12",
        "profile_type": "provisioner",
        "userdata": "cloud",
        "script": "maker",
        **names,
    }
    arguments = ["owner=me", "password=$6$salt$hash"]
    expect(api.post("/provisioner/profile", {**query, "arg": arguments}), 200)
    return "debian12"


def expect(answer: TestResponse, status: int) -> Any:
    """The JSON of an answer that must have this status; errors must have a text as message."""
    assert answer.is_json, f"{answer.status}: not JSON: {answer.data[:200]!r}"
    assert answer.status_code == status, answer.json
    if status >= 400:
        assert isinstance(answer.json, dict)
        assert isinstance(answer.json["message"], str)
        assert "\n" not in answer.json["message"]
    return answer.json


@pytest.fixture(name="expect")
def expect_fixture() -> Callable[[TestResponse, int], Any]:
    return expect
