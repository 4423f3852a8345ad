"""The API daemon, as a user without any rights on the machine; migrates the database before it starts."""

import json
import urllib.error
import urllib.request
from typing import Any

from devstack.configuration import API_USER
from devstack.daemon import Daemon, program
from devstack.service import Launch
from devstack.state import write_private
from pvccommon.errors import EnvironmentFault
from pvccommon.run import run

MODULE = "pvcapid.main"
TOKEN_NAME = "dev-stack"
AS_API = ("setpriv", f"--reuid={API_USER}", "--regid=nogroup", "--clear-groups", "--")


class Api(Daemon):
    name = "api"
    ready_timeout_s = 60

    def prepare(self) -> None:
        self.copy_code()
        self._program("migrate")
        if not self.state.token_file.exists():
            self._create_token()

    def launch(self) -> Launch:
        configuration = self.state / "api" / "pvc.conf"
        return Launch(program(MODULE, "serve"), user=API_USER, env=self.environment(configuration))

    def check_ready(self) -> None:
        self.get("/api/v1/")

    def address(self) -> str:
        return f"http://127.0.0.1:{self.state.port(self.name)}"

    def get(self, path: str) -> Any:
        """The JSON answer to a GET with the stack's own token; raises EnvironmentFault unless it is 200."""
        headers = {"X-Api-Key": self.state.token_file.read_text().strip()}
        request = urllib.request.Request(self.address() + path, headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            with exc:
                raise EnvironmentFault(f"GET {path}", f"status {exc.code}: {_message(exc)}") from exc
        except (OSError, ValueError) as exc:
            raise EnvironmentFault(f"GET {path}", str(exc)) from exc

    def _create_token(self) -> None:
        """An administrator's token, readable by root only. One whose file was lost is replaced."""
        self._program("token", "delete", TOKEN_NAME, ok=range(256))
        printed = self._program("token", "create", TOKEN_NAME, "--role", "admin")
        write_private(self.state.token_file, printed.split()[-1] + "\n")

    def _program(self, *words: str, ok: range = range(1)) -> str:
        environment = self.environment(self.state / "api" / "pvc.conf")
        return run([*AS_API, *program(MODULE, *words)], timeout_s=120, env=environment, cwd="/", ok=ok).stdout


def _message(answer: urllib.error.HTTPError) -> str:
    return answer.read(300).decode(errors="replace").strip()
