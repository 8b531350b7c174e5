"""The rules and PEFT's own functions, where the conventions agree (peft/utils/merge_utils.py)."""

import pytest
import torch
from conftest import draws

from pewe.merging.rules.dare import DareFlags, dare, dropped
from pewe.merging.rules.task_arithmetic import TaskArithmeticFlags, task_arithmetic
from pewe.merging.rules.ties import TiesFlags, ties, trimmed_each

peft = pytest.importorskip("peft.utils.merge_utils")
N = 3
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
STATES = [{"x": draws(f"peft/{number}", 9, 7).double()} for number in range(N)]
TENSORS = [state["x"] for state in STATES]


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_as_peft_is_that_of_peft(density):
    merged = ties(STATES, WEIGHTS, TiesFlags(density=density, as_peft=True))["x"]
    assert torch.allclose(merged, peft.ties(TENSORS, WEIGHTS.double(), density), atol=1e-12)


def test_task_arithmetic_is_that_of_peft():
    equal = torch.full((N,), 1 / N, dtype=torch.float64)
    merged = task_arithmetic(STATES, equal, TaskArithmeticFlags(scale=0.4))["x"]
    assert torch.allclose(merged, peft.task_arithmetic(TENSORS, torch.full((N,), 0.4)), atol=1e-7)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_pruning_by_size_is_that_of_peft(density):
    pruned = [trimmed_each(state, density)["x"] for state in STATES]
    expected = peft.magnitude_prune(TENSORS, WEIGHTS.double(), density)
    assert torch.allclose(sum(w * x for w, x in zip(WEIGHTS.double(), pruned, strict=True)), expected, atol=1e-12)


@pytest.mark.parametrize(("inside", "function"), [("linear", "dare_linear"), ("ties", "dare_ties")])
def test_dare_is_that_of_peft_once_both_drop_the_same(inside, function, monkeypatch):
    """PEFT's functions take no generator: what is dropped is put in."""
    left = iter([dropped(state, 0.4, 42)["x"] / 0.4 for state in STATES])
    monkeypatch.setattr(peft, "prune", lambda tensor, density, method, rescale=False: next(left))
    expected = getattr(peft, function)(TENSORS, WEIGHTS.double(), 0.4)
    merged = dare(STATES, WEIGHTS, DareFlags(density=0.4, inside=inside, as_peft=True))["x"]
    assert torch.allclose(merged, expected, atol=1e-12)
