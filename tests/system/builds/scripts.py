"""Builder scripts for tests: one that behaves, with a given piece of code put into one stage."""

import textwrap

STAGES = ("setup", "create", "prepare", "install", "cleanup")
BODIES = {
    "setup": "",
    "create": "return self.domain_xml()",
    "prepare": "self.volumes.create()",
    "install": "",
    "cleanup": "",
}


def script(*, module: str = "", **stages: str) -> str:
    """A script that makes blank disks and maps them; `stages` gives code to run first in a stage."""
    methods = []
    for stage in STAGES:
        body = f"{textwrap.dedent(stages.get(stage, ''))}\n{BODIES[stage]}".strip() or "pass"
        methods.append(f"    def {stage}(self):\n{textwrap.indent(body, ' ' * 8)}")
    return (
        "import ctypes, os, signal, socket, subprocess, sys, time\n"
        "from vmbuilder import VMBuilder\n"
        f"{textwrap.dedent(module)}\n"
        'class VMBuilderScript(VMBuilder):\n    """For a test."""\n    api_version = 1\n'
        + "\n".join(methods)
        + "\n"
    )
