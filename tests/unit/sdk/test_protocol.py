"""The runner as the worker meets it: a process speaking JSON lines."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from worker_end import SDK, Json, WorkerEnd

NOOP = (SDK / "builders" / "noop.py").read_text()
HEAD = "from vmbuilder import *\nclass VMBuilderScript(VMBuilder):\n    api_version = 1\n"


def method(body: str, name: str = "install") -> str:
    """A script with one method."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return f"{HEAD}    def {name}(self):\n{lines}"


def test_noop_builder_defines_the_vm_and_makes_its_volumes() -> None:
    with WorkerEnd() as worker:
        assert worker.load(NOOP) == {"type": "done", "stage": "load", "result": None}
        assert worker.stage("setup")["result"] is None
        assert worker.stage("create")["result"]["domain_xml"].startswith("<domain")
        for stage in ("prepare", "install", "cleanup"):
            assert worker.stage(stage)["type"] == "done"
        assert worker.end() == (0, "")
    volumes = [("volume.create", {"pool": "vms", "volume": f"web1_{disk}"}) for disk in ("sda", "sdb")]
    assert worker.requests == volumes


def test_one_object_lives_through_all_stages_and_may_change_its_data() -> None:
    script = (
        HEAD + "    def setup(self):\n        self.vm_data['seen'] = self.arguments['release']\n"
        "    def install(self):\n"
        "        print(self.vm_data['seen'], self.vm_id + 1, type(self.vm_uuid).__name__)\n"
    )
    with WorkerEnd() as worker:
        worker.load(script, arguments={"release": "bookworm"})
        worker.stage("setup")
        worker.stage("install")
        assert worker.end()[1] == "bookworm 2 UUID\n"


def test_constructor_of_the_script_has_the_plan_already() -> None:
    script = HEAD + "    def __init__(self, **kw):\n        self.log_info(self.vm_name)\n"
    with WorkerEnd() as worker:
        assert worker.load(script)["type"] == "done"
        assert worker.stage("create")["type"] == "done"
        assert worker.end()[1] == "<6>web1\n"


@pytest.mark.parametrize(
    ("source", "error_class", "words"),
    [
        ("class X:\n  pass\n", "ValidationError", "no class VMBuilderScript"),
        ("VMBuilderScript = 3\n", "ValidationError", "no class VMBuilderScript"),
        ("def (:\n", "SyntaxError", "invalid syntax"),
        ("raise KeyError('module level')\n", "KeyError", "module level"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError", "nothing_of_that_name"),
        ("exit(3)\n", "SystemExit", "exit()"),
        (HEAD.replace("= 1", "= 99"), "ValidationError", "api_version 99"),
    ],
)
def test_a_script_that_cannot_be_loaded_is_reported(source: str, error_class: str, words: str) -> None:
    with WorkerEnd() as worker:
        outcome = worker.load(source)
        assert outcome["type"] == "failed"
        assert outcome["stage"] == "load"
        assert outcome["error"]["class"] == error_class
        assert words in outcome["error"]["message"]


@pytest.mark.parametrize(
    ("body", "error_class", "message"),
    [
        ("self.fail('no luck')", "ProvisioningError", "no luck"),
        ("self.fail('no luck', ValidationError)", "ValidationError", "no luck"),
        ("raise SystemExit", "SystemExit", "the script called exit()"),
        ("self.run(['false'])", "CommandFailed", "false exited with 1"),
        ("self.run(['/no/such/program'])", "CommandFailed", "/no/such/program is not installed on this node"),
    ],
)
def test_a_failing_stage_is_reported(body: str, error_class: str, message: str) -> None:
    with WorkerEnd() as worker:
        worker.load(method(body))
        outcome = worker.stage("install")
        assert (outcome["type"], outcome["stage"]) == ("failed", "install")
        assert (outcome["error"]["class"], outcome["error"]["message"]) == (error_class, message)
        assert worker.stage("cleanup")["type"] == "done", "cleanup still runs"


def test_traceback_begins_in_the_script_and_shows_its_line() -> None:
    with WorkerEnd() as worker:
        worker.load(method("self.fail('no luck')  # this very line"))
        trace = worker.stage("install")["error"]["traceback"]
    first = trace.splitlines()[1]
    assert first == '  File "builder_script.py", line 5, in install'
    assert "# this very line" in trace


def test_create_has_to_return_text() -> None:
    with WorkerEnd() as worker:
        worker.load(method("return None", "create"))
        assert "must return the domain document" in worker.stage("create")["error"]["message"]


def test_refusal_of_the_broker_is_an_exception_with_its_parts() -> None:
    def refuse(verb: str, arguments: Json) -> Json:
        return {"error": {"what": "cannot map", "why": "not yours", "hint": "ask", "kind": "forbidden"}}

    script = method("try:\n    self.volumes[0].map()\nexcept ClusterError as e:\n    print(e, e.kind)")
    with WorkerEnd(refuse) as worker:
        worker.load(script)
        assert worker.stage("install")["type"] == "done"
        assert worker.end()[1] == "cannot map: not yours (hint: ask) forbidden\n"


def test_progress_is_a_request() -> None:
    with WorkerEnd() as worker:
        worker.load(method("self.progress('half', 50)"))
        worker.stage("install")
    assert worker.requests == [("progress", {"message": "half", "percent": 50})]


def test_forked_child_that_comes_back_does_not_answer_in_the_runners_place() -> None:
    script = method("import os, time\nif os.fork():\n    time.sleep(0.5)\n    print('parent')")
    with WorkerEnd() as worker:
        worker.load(script)
        assert worker.stage("install") == {"type": "done", "stage": "install", "result": None}
        assert worker.stage("cleanup")["type"] == "done"
        assert worker.end() == (0, "parent\n")


def test_script_that_leaves_at_once_is_seen_as_gone() -> None:
    with WorkerEnd() as worker:
        worker.load(method("import os\nos._exit(5)"))
        assert worker.stage("install") == {"type": "gone"}
        assert worker.process.wait(10) == 5


def test_log_lines_keep_their_order_and_cannot_forge_levels() -> None:
    body = (
        "import sys\nprint('one')\nself.log_warn('two\\n<3>three')\nprint('four', file=sys.stderr)\n"
        "self.run(['printf', '<3>five\\\\nsi\\\\377x\\\\rsix'])\n"
        "self.log_info('')\nself.log_err('\\x1b[2Jend')"
    )
    with WorkerEnd() as worker:
        worker.load(method(body))
        worker.stage("install")
        output = worker.end()[1]
    assert output.splitlines() == [
        "one",
        "<4>two",
        "<4><3>three",
        "four",
        "<7>$ printf '<3>five\\nsi\\377x\\rsix'",
        "<6><3>five",
        "<6>six",
        "<6>",
        "<3>\\x1b[2Jend",
    ]


def test_runner_ends_when_the_worker_goes_away() -> None:
    with WorkerEnd() as worker:
        worker.load(NOOP)
        worker.socket.shutdown(2)
        assert worker.process.wait(10) == 0


def test_runner_refuses_to_start_without_a_channel() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "vmbuilder.runner"],
        env={"PYTHONPATH": str(SDK)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "PVC_CHANNEL_FD" in ended.stdout


def test_works_from_a_zip_archive(tmp_path: Path) -> None:
    archive = tmp_path / "sdk.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((SDK / "vmbuilder").rglob("*.py")):
            packed.write(path, path.relative_to(SDK))
    with WorkerEnd(path=str(archive)) as worker:
        assert worker.load(NOOP)["type"] == "done"
        assert worker.stage("create")["type"] == "done"


def test_programs_do_not_inherit_the_channel() -> None:
    body = "print(self.run(['sh', '-c', 'ls -l /proc/self/fd | grep -c socket; true'], quiet=True).stdout)"
    with WorkerEnd() as worker:
        worker.load(method(body))
        worker.stage("install")
        assert worker.end()[1].splitlines()[-2:] == ["0", ""]


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('A' * 30_000_000)",
        "raise RuntimeError('\\ud800\\0' * 5_000_000)",
        "raise type('N' * 20_000_000, (Exception,), {})('x')",
        "raise ExceptionGroup('g' * 9_000_000, [ValueError('v' * 9_000_000)])",
    ],
    ids=["long", "odd", "class", "group"],
)
def test_an_enormous_error_fits_into_the_answer(body: str) -> None:
    with WorkerEnd() as worker:
        worker.load(method(body))
        outcome = worker.stage("install")
        assert outcome["type"] == "failed"
        assert all(len(text) <= 100_100 for text in outcome["error"].values())
        assert len(outcome["error"]["message"]) <= 10_100
        assert not any(char in text for text in outcome["error"].values() for char in "\0\ud800")
        assert worker.end()[0] == 0


def test_an_error_that_cannot_be_told_is_reported_as_such() -> None:
    script = HEAD + (
        "    def install(self):\n"
        "        class Mute(Exception):\n"
        "            def __str__(self):\n"
        "                raise ValueError('no words')\n"
        "        raise Mute()\n"
    )
    with WorkerEnd() as worker:
        worker.load(script)
        error = worker.stage("install")["error"]
        assert (error["class"], error["message"]) == ("Mute", "Mute")
        assert worker.end()[0] == 0


def test_a_domain_document_too_long_for_the_protocol_is_refused() -> None:
    with WorkerEnd() as worker:
        worker.load(method("return 'x' * 30_000_000", "create"))
        outcome = worker.stage("create")
        assert outcome["type"] == "failed"
        assert "longer than the protocol allows" in outcome["error"]["message"]
        assert worker.end()[0] == 0
