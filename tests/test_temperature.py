"""Softmax weights at both ends of the temperature, and similarities at both ends of the floats."""

import numpy as np
import pytest
import torch

from pewe.errors import UserError
from pewe.merging.save import SoftmaxConfig, ensemble_weights
from pewe.merging.weights import softmax_weights, temperature_for, uniform_weights
from pewe.reporting.stats import effective_numbers

APART = torch.tensor([[0.0, 1.0, 2.0, 2.0], [1.0, 0.0, 5.0, 6.0], [3.0, 3.0, 0.0, 3.0], [1.0, 2.0, 3.0, 0.0]]).double()
OTHERS = ~torch.eye(4, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1e-307, 1e-300, 1e-30, 1e-3])
@pytest.mark.parametrize("factor", [1.0, 2e307])
def test_the_limit_of_a_small_temperature_is_the_best_source_or_equals_that_share(temperature, factor):
    W = softmax_weights(APART * factor, temperature, True, OTHERS)
    third = 1 / 3
    expected = [[0, 0, 0.5, 0.5], [0, 0, 0, 1], [third, third, 0, third], [0, 0, 1, 0]]
    assert W.numpy() == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("temperature", [1e30, 1e307])
def test_the_limit_of_a_large_temperature_is_the_average(temperature):
    assert softmax_weights(APART, temperature, False, OTHERS).numpy() == pytest.approx(uniform_weights(OTHERS).numpy())


def test_no_weight_is_made_from_what_is_no_number():
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="temperature must be a finite number above 0"):
            softmax_weights(APART, temperature, True, OTHERS)
    with pytest.raises(UserError, match="a similarity is not finite"):
        softmax_weights(APART * float("inf"), 0.1, True, OTHERS)


@pytest.mark.parametrize("factor", [1e-300, 1e-9, 1.0, 1e9, 1e300])
@pytest.mark.parametrize("effective", [2.0, 2.5, 2.9])
def test_the_temperature_has_the_unit_of_the_similarity(factor, effective):
    one = temperature_for(APART, effective, True, OTHERS)
    scaled = temperature_for(APART * factor, effective, True, OTHERS)
    assert scaled / factor == pytest.approx(one)
    assert np.median(effective_numbers(softmax_weights(APART, one, True, OTHERS).numpy())) == pytest.approx(effective)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e308])
def test_equal_similarities_give_equal_weights_and_a_temperature(value):
    equal = torch.full((4, 4), value, dtype=torch.float64)
    temperature = temperature_for(equal, 2.0, True, OTHERS)
    assert 0 < temperature < float("inf")
    assert softmax_weights(equal, temperature, True, OTHERS).numpy() == pytest.approx(uniform_weights(OTHERS).numpy())


def test_an_effective_number_that_cannot_be_reached_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("pewe.cli.log.propagate", True)
    W, _ = ensemble_weights(SoftmaxConfig(effective=2.0), torch.zeros(4, 4).double(), 0.1, True, OTHERS)
    assert W.numpy() == pytest.approx(uniform_weights(OTHERS).numpy())
    assert "gives an effective number of sources of 3" in caplog.text and caplog.records[0].levelname == "WARNING"
