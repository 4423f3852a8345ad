"""Pytest plugin of dev/check: with --forbid-skips, a skipped or expected-to-fail test fails the run."""

import pytest
from _pytest.terminal import TerminalReporter

SKIPPED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", action="store_true", help="fail when any test is skipped")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SKIPPED] = []
    if config.getoption("--forbid-skips"):
        config.pluginmanager.register(Recorder(config.stash[SKIPPED]))


class Recorder:
    """Collects what did not run: tests, and whole modules skipped while they were collected."""

    def __init__(self, skipped: list[str]) -> None:
        self.skipped = skipped

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {reason(report)}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {reason(report)}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, which is forbidden here", red=True)
            for line in self.skipped:
                terminalreporter.line(line)


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped; pytest gives (file, line, reason)."""
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "expected to fail"
