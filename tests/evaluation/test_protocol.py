from dataclasses import fields, replace

import pytest
import torch

from fewstep.data.facts import DataFacts
from fewstep.evaluation.features import DigitsFeatures
from fewstep.evaluation.images import Reference
from fewstep.evaluation.protocol import Protocol

DIGITS = DataFacts("digits", (1, 8, 8), 10, -1.0, 1.0)


@pytest.fixture
def protocol(net: DigitsFeatures, reference: Reference) -> Protocol:
    return Protocol.of(DIGITS, net, reference, num_images=2000, seed=0)


@pytest.mark.parametrize("field", [field.name for field in fields(Protocol)])
def test_each_field_changes_the_id(protocol: Protocol, field: str) -> None:
    value = getattr(protocol, field)
    changed = replace(protocol, **{field: value + 1 if isinstance(value, int) else value + "'"})
    assert changed.id != protocol.id


def test_equal_fields_give_the_same_id(protocol: Protocol) -> None:
    again = Protocol(**{field.name: getattr(protocol, field.name) for field in fields(Protocol)})
    assert again.id == protocol.id
    assert len(protocol.id) == 8
    assert int(protocol.id, 16) >= 0
    assert protocol.as_dict()["id"] == protocol.id
    assert Protocol(**{k: v for k, v in protocol.as_dict().items() if k != "id"}) == protocol


def test_the_id_is_a_written_constant() -> None:
    """A changed way of hashing would silently part old tables from new ones."""
    fixed = Protocol("d", "test", "aa", "net", "bb", "path", 10, 0, torch_fidelity="0.4.0")
    assert fixed.id == "ebe54433"


def test_another_pixel_or_label_of_the_reference_is_another_protocol(
    protocol: Protocol, net: DigitsFeatures, reference: Reference
) -> None:
    images, labels = reference.images.clone(), reference.labels.clone()
    images[0, 0, 0, 0] += 1
    labels[0] += 1
    for changed in (Reference("test", images, reference.labels), Reference("test", reference.images, labels)):
        assert Protocol.of(DIGITS, net, changed, num_images=2000, seed=0).id != protocol.id
    same = Reference("test", reference.images.clone(), torch.clone(reference.labels))
    assert Protocol.of(DIGITS, net, same, num_images=2000, seed=0) == protocol
