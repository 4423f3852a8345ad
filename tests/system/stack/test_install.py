"""dev/install, with apt-get and dpkg-query replaced, in a mount namespace where /usr/sbin is an overlay."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devstack.state import CHECKOUT
from pvccommon.run import SAFE_PATH, Completed, run

pytestmark = pytest.mark.system

POLICY = "/usr/sbin/policy-rc.d"
# Packages are missing until the fake apt-get "installs" them; it notes what services would be told meanwhile.
DPKG_QUERY = """#!/bin/sh
[ ! -e $FAKE/installed ] || exec $REAL/dpkg-query "$@"
$REAL/dpkg-query "$@" | grep -v ' redis-server$'
"""
APT_GET = """#!/bin/sh
echo "$*" >>$FAKE/calls
case "$*" in *install*)
    /usr/sbin/policy-rc.d; echo "policy $?" >>$FAKE/calls
    [ ! -e $FAKE/broken ] || { echo "E: no such file" >&2; exit 100; }
    touch $FAKE/installed ;;
esac
"""
APT_CACHE = """#!/bin/sh
if [ -e $FAKE/stale ] && ! grep -q update $FAKE/calls; then exit 0; fi
echo "  Candidate: 1.0"
"""
ENTER = """
mount -t tmpfs none "$FAKE/overlay" && mkdir "$FAKE/overlay/upper" "$FAKE/overlay/work" || exit 99
layers="lowerdir=/usr/sbin,upperdir=$FAKE/overlay/upper,workdir=$FAKE/overlay/work"
mount -t overlay -o "$layers" none /usr/sbin || exit 99
rm -f /usr/sbin/policy-rc.d
[ ! -e "$FAKE/own-policy" ] || cp "$FAKE/own-policy" /usr/sbin/policy-rc.d
"$@"; code=$?
if [ -e /usr/sbin/policy-rc.d ]; then cp /usr/sbin/policy-rc.d "$FAKE/policy-after"; fi
ls /usr/sbin/policy-rc.d* >"$FAKE/files-after" 2>/dev/null
exit $code
"""


@dataclass(frozen=True)
class Fake:
    """The directory of the fake programs and what they have noted."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def calls(self) -> list[str]:
        return (self / "calls").read_text().splitlines()

    def install(self, ok: tuple[int, ...] = (0,)) -> Completed:
        environment = {"FAKE": str(self.path), "REAL": "/usr/bin", "PATH": f"{self.path}:{SAFE_PATH}"}
        inside = ["/bin/sh", "-c", ENTER, "enter", str(CHECKOUT / "dev/install")]
        argv = ["unshare", "--mount", "--propagation", "private", "--", *inside]
        return run(argv, timeout_s=120, env=environment, ok=ok)


@pytest.fixture
def fake() -> Iterator[Fake]:
    path = Path(tempfile.mkdtemp(prefix="pvc-install-", dir="/var/tmp"))
    for name, text in (("dpkg-query", DPKG_QUERY), ("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    (path / "calls").touch()
    (path / "overlay").mkdir()
    yield Fake(path)
    shutil.rmtree(path)


def test_with_everything_there_apt_is_not_asked(fake: Fake) -> None:
    (fake / "installed").touch()
    done = fake.install()
    assert fake.calls == []
    assert done.seconds < 5


def test_services_are_denied_only_while_packages_are_installed(fake: Fake) -> None:
    fake.install()
    assert [line for line in fake.calls if line.startswith("policy")] == ["policy 101"]
    assert "--no-install-recommends" in fake.calls[0] and fake.calls[0].endswith(" redis-server")
    assert not (fake / "policy-after").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_policy_of_the_administrator_is_back_afterwards(fake: Fake, broken: bool) -> None:
    (fake / "own-policy").write_text("#!/bin/sh\nexit 104\n")
    if broken:
        (fake / "broken").touch()
    fake.install(ok=(0, 1))
    assert "policy 101" in fake.calls
    assert (fake / "policy-after").read_text() == "#!/bin/sh\nexit 104\n"
    assert (fake / "files-after").read_text() == f"{POLICY}\n"


def test_failing_apt_is_tried_with_fresh_lists_then_reported(fake: Fake) -> None:
    (fake / "broken").touch()
    failed = fake.install(ok=(1,))
    assert [line.split()[-1] for line in fake.calls if "update" in line] == ["update"]
    assert "cannot install packages: apt-get ended with an error: E: no such file" in failed.stderr
    assert "hint: " in failed.stderr


def test_lists_without_the_package_are_refreshed_first(fake: Fake) -> None:
    (fake / "stale").touch()
    fake.install()
    assert fake.calls[0].endswith("update")
    assert "install" in fake.calls[1]
