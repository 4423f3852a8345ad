"""The plugin that makes a skipped test a failure."""

import pytest

pytest_plugins = ["pytester"]

SKIPPING = """
import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="no device")
def test_skipped():
    pass

@pytest.mark.xfail(reason="known", strict=False)
def test_expected():
    assert False
"""


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "devstack_pytest", *options)


def test_skipped_tests_fail_the_run_and_are_listed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SKIPPING)
    result = run(pytester, "--forbid-skips")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*test_skipped: *no device*", "*test_expected: *"])


def test_module_skipped_as_a_whole_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_one="import pytest\npytest.importorskip('no_such_module_anywhere')")
    pytester.makepyfile(test_two="def test_runs(): pass")
    assert run(pytester, "--forbid-skips").ret == pytest.ExitCode.TESTS_FAILED


def test_without_the_option_skips_are_fine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SKIPPING)
    assert run(pytester).ret == pytest.ExitCode.OK


def test_summary_line_is_the_last(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SKIPPING)
    assert run(pytester, "--forbid-skips").outlines[-1].startswith("===")
