"""Every number of tests/golden, which agreed with the original code's where it has one: computed again, to 1e-4."""

from types import SimpleNamespace

import pytest
from conftest import draws
from golden.cases import CASES
from golden.compare import agree, differences, summary
from golden.make import HERE, stored


@pytest.fixture(scope="module")
def world(tiny_backbones, tiny_data, paper_data, tiny_checkpoints, tmp_path_factory):
    """What the cases read, and a new folder for each."""
    return SimpleNamespace(
        backbones=tiny_backbones,
        data=tiny_data,
        paper_data=paper_data,
        checkpoints=tiny_checkpoints,
        scratch=lambda: tmp_path_factory.mktemp("case"),
    )


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_our_own(world, name):
    assert differences(CASES[name](world), stored(name.split("/")[0])[name]) == []


def test_every_stored_case_is_computed():
    files = [path.stem for path in HERE.glob("*.json")]
    assert sorted(name for topic in files for name in stored(topic)) == sorted(CASES)


def test_a_small_change_is_noticed():
    """Of one entry among many by a thousandth of the tensor's norm, of an order, of a text, of a name."""
    tensor = draws("x", 24, 24)
    other = tensor.clone()
    other[3, 5] += 1e-3 * tensor.norm()
    assert agree(summary(tensor), summary(tensor * (1 + 1e-5)))
    assert not agree(summary(tensor), summary(other))
    assert not agree(summary(tensor), summary(tensor.T))
    assert not agree([1, 2], [2, 1]) and not agree(["a"], ["b"]) and not agree([0.0, 1e-9], [0.0, 0.0])
    assert differences({"a": [1.0]}, {"b": [1.0]}) == ["a", "b"]
