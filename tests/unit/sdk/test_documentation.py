"""The guide's example is a script that works."""

import re
from pathlib import Path

from worker_end import WorkerEnd

from pvccommon.declarations import read_declaration

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "writing-a-builder.md"


def test_example_of_the_guide_is_accepted() -> None:
    example = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert example
    declaration = read_declaration(example[1])
    assert [argument.name for argument in declaration.arguments] == ["greeting"]
    with WorkerEnd() as worker:
        assert worker.load(example[1], arguments={"greeting": "hi"})["type"] == "done"
        assert "<domain" in worker.stage("create")["result"]["domain_xml"]


def test_every_module_the_guide_names_exists() -> None:
    import importlib

    names = set(re.findall(r"`(vmbuilder\.[a-z_]+)`", GUIDE.read_text()))
    assert len(names) > 5
    for name in names:
        importlib.import_module(name)
