"""The command line against a fake API, in process and without sockets."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cli_fake_api as fake
from cli_wsgi import WsgiAdapter

import pvc.client
import pvc.tasks
from pvc.main import run

VARIABLES = (
    "PVC_CONNECTION PVC_CONFIG PVC_DEBUG PVC_QUIET PVC_SILENT PVC_UNSAFE PVC_COLOUR PVC_API_URL PVC_API_KEY "
    "PVC_CLIENT_VERIFY_SSL COLUMNS"
).split()


@dataclass
class Result:
    code: int
    out: str
    err: str


class Runner:
    """Runs command lines against the fake API."""

    def __init__(self, api: fake.FakeApi, capture: pytest.CaptureFixture[str]) -> None:
        self._api = api
        self._capture = capture
        self.adapter = WsgiAdapter(api.app())

    def __call__(self, *arguments: str) -> Result:
        self._capture.readouterr()
        code = run(arguments, transport=self.adapter)
        captured = self._capture.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the caller's environment, a store of its own, and no pauses."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PVC_CLIENT_DIR", str(tmp_path / "client"))
    monkeypatch.setenv("PVC_API_URL", "http://api.test:7370")
    monkeypatch.setenv("PVC_API_KEY", "k3y")
    monkeypatch.setattr(pvc.client, "GET_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(pvc.tasks, "POLL_S", 0.0)


@pytest.fixture
def api() -> fake.FakeApi:
    return fake.FakeApi()


@pytest.fixture
def pvc_run(api: fake.FakeApi, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(api, capsys)
