"""Names: valid ones, and names made from others."""

import pytest

from pvccommon import names


@pytest.mark.parametrize("name", ["a", "web1", "web-1", "a" * 63, "1web"])
def test_host_names_are_vm_names(name: str) -> None:
    assert names.is_vm_name(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "Web", "a_b", "a.b", "a" * 64, "a b", "a\n", "../a", "ä", "a\0"]
)
def test_other_texts_are_not_vm_names(name: str) -> None:
    assert not names.is_vm_name(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a#b", "a?b", "a b", "a" * 65, "a\n", "a%b"])
def test_what_breaks_a_url_is_not_an_object_name(name: str) -> None:
    assert not names.is_object_name(name)


@pytest.mark.parametrize(
    ("vni", "ok"),
    [
        ("upstream", True),
        ("cluster", True),
        ("1", True),
        ("16777215", True),
        ("16777216", False),
        ("0", False),
        ("", False),
        ("x", False),
        ("1 ", False),
    ],
)
def test_vnis(vni: str, ok: bool) -> None:
    assert names.is_vni(vni) is ok


def test_volume_is_named_after_vm_and_disk() -> None:
    assert names.volume_name("web1", "sda") == "web1_sda"


def test_sdb_comes_before_sdaa() -> None:
    assert sorted(["sdaa", "sdb", "sda"], key=names.disk_order) == ["sda", "sdb", "sdaa"]


@pytest.mark.parametrize(("name", "number"), [("web12", 12), ("web", 0), ("7up", 0), ("a1b22", 22)])
def test_vm_number_is_the_suffix(name: str, number: int) -> None:
    assert names.vm_number(name) == number


def test_templated_addresses_differ_by_vm_and_nic() -> None:
    template = "{prefix}:0a:17:{vmid}{netid}"
    assert names.mac_address(template, "web12", "", 3) == "52:54:01:0a:17:c3"


def test_untemplated_address_depends_on_uuid_and_nic_only() -> None:
    first = names.mac_address(None, "a", "u1", 0)
    assert first == names.mac_address(None, "b", "u1", 0)
    assert first not in (names.mac_address(None, "a", "u1", 1), names.mac_address(None, "a", "u2", 0))


@pytest.mark.parametrize(
    "template", ["x", "{prefix}", "{0.__class__}", "{prefix}:{vmid.__class__}", "{vmid}" * 12]
)
def test_templates_that_give_no_address_are_refused(template: str) -> None:
    assert names.mac_template_problem(template)
