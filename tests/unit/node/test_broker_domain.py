"""A script may change its domain's document later: only to what create() could have returned."""

from typing import Any

import pytest
from plans import plan, sdk_xml

from pvccommon.errors import WrongInput
from pvcnoded.broker import Broker


@pytest.fixture
def broker() -> Broker:
    """One that has nothing to make volumes with."""
    nothing: Any = None
    return Broker(plan(), {}, nothing, nothing, nothing)


def test_document_that_passes_is_kept(broker: Broker) -> None:
    changed = sdk_xml(plan()).replace('bus="scsi"', 'bus="sata"')
    assert broker.changed_domain is None
    assert broker.answer("domain.change", {"xml": changed}) == {}
    assert {target.get("bus") for target in broker.changed_domain.findall("devices/disk/target")} == {"sata"}


@pytest.mark.parametrize(
    "xml",
    [
        None,
        7,
        "",
        "<domain",
        sdk_xml(plan()).replace("web1_sda", "other_sda"),
        sdk_xml(plan()).replace('type="volume"', 'type="file"'),
        sdk_xml(plan()).replace('<vcpu placement="static">2', '<vcpu placement="static">64'),
    ],
)
def test_any_other_is_refused_and_the_first_stays(broker: Broker, xml: Any) -> None:
    with pytest.raises(WrongInput):
        broker.answer("domain.change", {"xml": xml})
    assert broker.changed_domain is None
