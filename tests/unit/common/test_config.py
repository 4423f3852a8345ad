"""The configuration file: typed, documented, unknown keys refused, all problems at once."""

from pathlib import Path

import pytest

from pvccommon.config import Config, describe, load_config, parse_config, read_secret
from pvccommon.errors import EnvironmentFault, WrongInput


def test_empty_document_gives_the_defaults() -> None:
    assert parse_config(None) == Config()


def test_values_are_read_into_their_sections() -> None:
    config = parse_config(
        {
            "api": {"listen": {"port": 80}},
            "storage": {"pools": {"vms": {"path": "/srv/vms", "format": "qcow2"}, "other": None}},
            "sandbox": {"hidden_paths": ["/srv"]},
            "networks": {100: {"bridge": "vmbr100"}},
        }
    )
    assert config.api.listen.port == 80
    assert config.storage.pools["vms"].format == "qcow2"
    assert config.storage.pools["other"].driver == "directory"
    assert config.sandbox.hidden_paths == ("/srv",)
    assert config.networks["100"].bridge == "vmbr100"


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ({"databse": {}}, "databse", "did you mean 'database'"),
        ({"api": {"lisen": {}}}, "api.lisen", "did you mean 'listen'"),
        ({"api": {"listen": {"port": "x"}}}, "api.listen.port", "must be whole number"),
        ({"api": {"listen": {"port": True}}}, "api.listen.port", "must be whole number"),
        ({"api": {"ssl": {"enabled": "yes"}}}, "api.ssl.enabled", "must be true or false"),
        ({"hypervisor": {"domain_type": "xen"}}, "hypervisor.domain_type", "auto or kvm or qemu"),
        ({"sandbox": {"hidden_paths": "/srv"}}, "sandbox.hidden_paths", "list of texts"),
        ({"storage": {"pools": []}}, "storage.pools", "must be a mapping"),
        ({"storage": {"pools": {"vms": {"drivr": "x"}}}}, "storage.pools.vms.drivr", "did you mean 'driver'"),
        ({"node": []}, "node", "must be a mapping"),
        ({"sandbox": {"first_uid": 1000}}, "sandbox.first_uid", "at least 65536"),
        ({"node": {"transfers": 0}}, "node.transfers", "at least 1"),
        ({"node": {"transfer_address": "hv1"}}, "node.transfer_address", "IP address"),
        ({"node": {"transfer_address": "0.0.0.0"}}, "node.transfer_address", "one address"),
        ({"node": {"transfer_ports": "7400-70000"}}, "node.transfer_ports", "range"),
        ({"node": {"transfer_ports": "7409-7400"}}, "node.transfer_ports", "range"),
        (
            {"api": {"listen": {"address": "0.0.0.0"}, "authentication": {"enabled": False}}},
            "api.authentication.enabled",
            "loopback",
        ),
        (
            {"api": {"listen": {"address": "10.0.0.1"}, "authentication": {"anonymous_role": "viewer"}}},
            "api.authentication.anonymous_role",
            "loopback",
        ),
        ({"api": {"ssl": {"enabled": True}}}, "api.ssl", "certificate and key"),
    ],
)
def test_wrong_documents_are_refused_with_path_and_reason(document: object, path: str, message: str) -> None:
    with pytest.raises(WrongInput) as caught:
        parse_config(document)
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert message in found[path]


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(WrongInput) as caught:
        parse_config({"a": 1, "api": {"workers": "x", "b": 2}})
    assert {problem.path for problem in caught.value.problems} == {"a", "api.workers", "api.b"}


def test_file_is_found_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pvc.conf"
    path.write_text("cluster: {name: other}\n")
    monkeypatch.setenv("PVC_CONFIG", str(path))
    assert load_config().cluster.name == "other"


@pytest.mark.parametrize("text", ["a: [", "a: *b", "\0"])
def test_file_that_is_not_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad").write_text(text)
    with pytest.raises(WrongInput, match="not YAML"):
        load_config(tmp_path / "bad")


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        load_config(tmp_path / "none")
    assert "PVC_CONFIG" in caught.value.hint


def test_secret_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    path.chmod(0o604)
    with pytest.raises(EnvironmentFault, match="others can read it") as caught:
        read_secret(str(path))
    assert "hunter2" not in str(caught.value)
    path.chmod(0o640)
    assert read_secret(str(path)) == "hunter2"


def test_empty_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("\n")
    path.chmod(0o600)
    with pytest.raises(EnvironmentFault, match="empty"):
        read_secret(str(path))


def test_every_key_is_documented() -> None:
    rows = list(describe())
    assert len(rows) > 40
    assert [
        path for path, _, _, text in rows if len(text) < 10 and text != "Its port." and text != "TLS."
    ] == []
