"""The combiners: invariants of all, hands and slow formulas for TIES and DARE, a second implementation of the SVD family."""

import math

import numpy as np
import pytest
import torch
from conftest import draws

from pewe.errors import UserError
from pewe.flags import check
from pewe.merging.rules import RULES, NoFlags
from pewe.merging.rules.average import average
from pewe.merging.rules.core_space import CoreSpaceFlags, core, core_space
from pewe.merging.rules.dare import DareFlags, dare, dropped
from pewe.merging.rules.knots import KnotsFlags, knots, tied
from pewe.merging.rules.matrices import decomposed
from pewe.merging.rules.svd import SvdFlags, svd
from pewe.merging.rules.task_arithmetic import TaskArithmeticFlags, task_arithmetic
from pewe.merging.rules.tensors import shares
from pewe.merging.rules.ties import TiesFlags, ties, trimmed, trimmed_each

d, r, h, N = 12, 2, 10, 3
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
EQUAL = torch.full((N,), 1 / N, dtype=torch.float64)

CASES = {  # each as its defaults are, and so that one source comes back
    "average": (average, NoFlags(), NoFlags()),
    "task_arithmetic": (task_arithmetic, TaskArithmeticFlags(), TaskArithmeticFlags(scale=1.0)),
    "ties": (ties, TiesFlags(), TiesFlags(density=1.0)),
    "ties_as_peft": (ties, TiesFlags(as_peft=True), TiesFlags(density=1.0, as_peft=True)),
    "dare": (dare, DareFlags(), DareFlags(density=1.0)),
    "dare_ties": (dare, DareFlags(inside="ties"), DareFlags(density=1.0, inside="ties")),
    "svd": (svd, SvdFlags(), SvdFlags()),
    "core_linear": (core_space, CoreSpaceFlags(inside="linear"), CoreSpaceFlags(inside="linear")),
    "core_ties": (core_space, CoreSpaceFlags(inside="ties"), CoreSpaceFlags(inside="ties", density=1.0)),
    "core_tsv_m": (core_space, CoreSpaceFlags(), CoreSpaceFlags()),
    "core_iso_c": (core_space, CoreSpaceFlags(inside="iso_c", rank=-1), None),
    "knots": (knots, KnotsFlags(), KnotsFlags(density=1.0, scale=1.0)),
}
LINEAR_IN_FACTORS = ("average", "task_arithmetic", "ties", "ties_as_peft", "dare", "dare_ties")
WHOLE = [name for name, (_, _, whole) in CASES.items() if whole]


def sources(count: int = N) -> list[dict]:
    """States of a LoRA, a matrix, a vector and whole numbers, float32."""
    shapes = {"q.lora_A": (d, r), "q.lora_B": (r, h), "up": (7, 5), "bias": (5,)}
    return [
        {name: draws(f"{number}/{name}", *shape) for name, shape in shapes.items()} | {"steps": torch.tensor([3, 4])}
        for number in range(count)
    ]


def product(state: dict) -> torch.Tensor:
    return state["q.lora_A"].double() @ state["q.lora_B"].double()


def maps(name: str, state: dict) -> dict:
    """What a rule merges: factors by themselves, or their product, which is all that the SVD family keeps."""
    if name in LINEAR_IN_FACTORS:
        return state
    return {"q": product(state), **{key: tensor for key, tensor in state.items() if "lora" not in key}}


def difference(name: str, one: dict, other: dict) -> float:
    """The largest difference of what a rule merges."""
    assert list(one) == list(other)
    pairs = zip(maps(name, one).values(), maps(name, other).values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def test_every_rule_is_among_the_cases():
    """A new one passes the invariants; those with statistics do in test_fusion_deltas.py."""
    assert {rule for rule, _, _ in CASES.values()} == {rule.merge for rule in RULES.values() if not rule.statistics}


@pytest.mark.parametrize("name", WHOLE)
def test_one_source_gives_that_source(name):
    rule, _, whole = CASES[name]
    (source,) = sources(1)
    merged = rule([source], torch.tensor([1.0]), whole)
    if name in LINEAR_IN_FACTORS:
        assert all(torch.equal(merged[key].to(tensor.dtype), tensor) for key, tensor in source.items())
    assert difference(name, merged, source) < 1e-12


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("core_tsv_m", "ties_as_peft")])
def test_equal_sources_give_that_source(name):
    rule, _, whole = CASES[name]
    (source,) = sources(1)
    flags = TaskArithmeticFlags(scale=1 / N) if name == "task_arithmetic" else whole
    assert difference(name, rule([source] * N, EQUAL, flags), source) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_the_sources_changes_nothing(name):
    rule, flags, _ = CASES[name]
    states, order = sources(), [2, 0, 1]
    other = rule([states[place] for place in order], WEIGHTS[order], flags)
    assert difference(name, rule(states, WEIGHTS, flags), other) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_a_source_of_weight_zero_is_as_one_left_out(name):
    rule, flags, _ = CASES[name]
    states = sources(N + 1)
    weights = torch.cat([WEIGHTS[:1], torch.zeros(1), WEIGHTS[1:]])
    states = [states[0], states[N], *states[1:N]]
    with_zero, without = rule(states, weights, flags), rule(sources(), WEIGHTS, flags)
    assert with_zero["q.lora_A"].shape == without["q.lora_A"].shape
    assert difference(name, with_zero, without) < 1e-12


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("dare")])
def test_larger_sources_merge_to_a_larger_state(name):
    """rule(c tau) = c rule(tau): no rule depends on the unit; DARE drops other entries of other values."""
    rule, flags, _ = CASES[name]
    same = ("steps",) if name in LINEAR_IN_FACTORS else ("steps", "q.lora_B")  # a product grows by one of its factors
    larger = [{key: x if key in same else 4 * x for key, x in state.items()} for state in sources()]
    one, other = (maps(name, rule(states, WEIGHTS, flags)) for states in (sources(), larger))
    assert all((4 * one[key] - other[key]).abs().max() < 1e-11 for key in one if key != "steps")


@pytest.mark.parametrize("name", [name for name in CASES if hasattr(CASES[name][1], "scale")])
def test_the_scale_is_a_factor_of_the_result(name):
    rule, flags, _ = CASES[name]
    one, other = (
        maps(name, rule(sources(), WEIGHTS, type(flags)(**vars(flags) | {"scale": scale}))) for scale in (1.0, 2.5)
    )
    assert all((2.5 * one[key] - other[key]).abs().max() < 1e-11 for key in one if key != "steps")
    none = rule(sources(), WEIGHTS, type(flags)(**vars(flags) | {"scale": 0.0}))
    assert not any(tensor.any() for key, tensor in none.items() if key != "steps")


@pytest.mark.parametrize(
    ("rule", "flags"),
    [
        (ties, TiesFlags(density=0.0)),
        (ties, TiesFlags(density=0.0, as_peft=True)),
        (core_space, CoreSpaceFlags(inside="ties", density=0.0)),
        (knots, KnotsFlags(density=0.0)),
    ],
)
def test_density_zero_keeps_nothing(rule, flags):
    merged = maps("svd", rule(sources(), WEIGHTS, flags))
    assert not merged["q"].any() and not merged["up"].any() and torch.equal(merged["steps"], torch.tensor([3, 4]))


def test_all_are_in_the_registry_with_allowed_defaults():
    assert {rule for rule, _, _ in CASES.values()} <= {rule.merge for rule in RULES.values()}
    for rule in RULES.values():
        check(rule.flags())


# ---- sums


def test_task_arithmetic_is_the_sum_and_at_one_nth_the_average():
    states = sources()
    total = sum(state["up"].double() for state in states)
    assert torch.allclose(task_arithmetic(states, EQUAL, TaskArithmeticFlags())["up"], 0.3 * total, atol=1e-12)
    merged = task_arithmetic(states, EQUAL, TaskArithmeticFlags(scale=1 / N))["up"]
    assert torch.allclose(merged, total / N, atol=1e-12)


def test_shares_count_the_sources_that_have_weight():
    assert torch.allclose(shares(EQUAL), torch.ones(N, dtype=torch.float64))
    assert shares(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([1, 0])
    half = torch.tensor([0.5, 0.5, 1e-12], dtype=torch.float64)
    assert shares(half)[:2].tolist() == pytest.approx([1, 1])
    assert shares(torch.tensor([1.0, -1.0]) / 2).tolist() == pytest.approx([1, -1])


# ---- TIES


def vectors(*rows) -> list[dict]:
    return [{"x": torch.tensor(row, dtype=torch.float64)} for row in rows]


def test_ties_elects_by_the_sum_and_averages_those_who_agree():
    states = vectors([3.0, -1, 2, 0.5], [1, -2, -5, 0.5], [-2, 4, 1, 0])
    merged = ties(states, EQUAL, TiesFlags(density=1.0))["x"]  # sums: 2, 1, -2, 1
    assert merged.tolist() == pytest.approx([2, 4, -5, 0.5])
    weighted = ties(states, torch.tensor([0.2, 0.6, 0.2]), TiesFlags(density=1.0))["x"]  # 0.8, -0.6, -2.4, 0.4
    assert weighted.tolist() == pytest.approx([(0.6 + 0.6) / 0.8, (-0.2 - 1.2) / 0.8, -5, 0.5])


@pytest.mark.parametrize(("rest", "chosen"), [([2.0, 2], 3), ([-2.0, -2], -3), ([2.0, -2], -3)])
def test_where_the_sum_is_zero_the_sign_of_most_entries_is_taken(rest, chosen):
    states = vectors([3.0, *rest], [-3.0, *rest])
    assert ties(states, torch.tensor([0.5, 0.5]), TiesFlags(density=1.0))["x"].tolist() == [chosen, *rest]
    as_peft = ties(states, torch.tensor([1.0, 1.0]), TiesFlags(density=1.0, as_peft=True))["x"]
    assert as_peft.tolist() == [3, *rest]


def test_trimming_is_over_the_whole_vector_and_in_peft_over_each_tensor():
    state = {"a": torch.tensor([9.0, 8, 7, 6, 5]), "b": torch.tensor([-1.0, 2, -3, 4, 0.5]), "n": torch.tensor([7])}
    kept = trimmed(state, 0.3)  # int(10 x 0.3) and one more, as the release counts
    assert kept["a"].tolist() == [9, 8, 7, 6, 0] and not kept["b"].any() and kept["n"].item() == 7
    assert not trimmed(state, 0.0)["a"].any() and trimmed(state, 1.0) == state
    each = trimmed_each(state, 0.5)
    assert each["a"].tolist() == [9, 8, 0, 0, 0] and each["b"].tolist() == [0, 0, -3, 4, 0]


def ties_of_release(rows: list[list[float]], density: float) -> list[float]:
    """merge_methods("topk", ..., "mass", "dis-mean") of prateeky2806/ties-merging, value by value."""
    count = len(rows[0])
    least = [sorted(map(abs, row))[count - int(count * density) - 1] for row in rows]
    rows = [[x if abs(x) >= low else 0.0 for x in row] for row, low in zip(rows, least, strict=True)]
    columns = list(zip(*rows, strict=True))
    signs = [int(np.sign(math.fsum(column))) for column in columns]
    majority = int(np.sign(sum(signs)))
    signs = [sign or majority for sign in signs]
    merged = []
    for column, sign in zip(columns, signs, strict=True):
        kept = [x for x in column if (x > 0 if sign > 0 else x < 0)]
        merged.append(math.fsum(kept) / max(len(kept), 1))
    return merged


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("whole_values", [False, True])
def test_ties_is_that_of_the_release(density, whole_values):
    """Whole values make ties of sizes and sums that are 0."""
    states = sources()
    if whole_values:
        states = [{key: tensor.round() if key != "steps" else tensor for key, tensor in s.items()} for s in states]
    merged = ties(states, EQUAL, TiesFlags(density=density))
    rows = [torch.cat([state[key].flatten() for key in state if key != "steps"]).tolist() for state in states]
    found = torch.cat([merged[key].flatten() for key in merged if key != "steps"]).tolist()
    assert found == pytest.approx(ties_of_release(rows, density), abs=1e-12)


# ---- PEFT's conventions: the formulas of peft/utils/merge_utils.py 0.21.2, value by value


def of_columns(tensors: list[torch.Tensor], merge) -> torch.Tensor:
    """merge((x_1, ..., x_N)) of every entry."""
    columns = zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)
    return torch.tensor([merge(column) for column in columns], dtype=torch.float64).view(tensors[0].shape)


def pruned(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """magnitude_based_pruning."""
    best = sorted(range(tensor.numel()), key=lambda place: -abs(tensor.flatten()[place].item()))
    kept = set(best[: int(density * tensor.numel())])
    values = [x if place in kept else 0.0 for place, x in enumerate(tensor.flatten().tolist())]
    return torch.tensor(values, dtype=torch.float64).view(tensor.shape)


def disjoint(column, weights) -> float:
    """calculate_majority_sign_mask ("total") and disjoint_merge."""
    sign = 1 if sum(column) >= 0 else -1
    kept = [w * x for w, x in zip(weights, column, strict=True) if np.sign(x) == sign]
    return sum(kept) / max(len(kept), 1)


def weighted_sum(column, weights) -> float:
    """task_arithmetic."""
    return sum(w * x for w, x in zip(weights, column, strict=True))


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_agreement_with_peft(density):
    states, w = sources(), WEIGHTS.double().tolist()
    left = [dropped(state, density, 42) for state in states]
    merged = {
        "task_arithmetic": task_arithmetic(states, EQUAL, TaskArithmeticFlags(scale=0.7)),
        "ties": ties(states, WEIGHTS, TiesFlags(density=density, as_peft=True)),
        "magnitude_prune": task_arithmetic(
            [trimmed_each(state, density) for state in states], EQUAL, TaskArithmeticFlags(scale=0.7)
        ),
        "dare_linear": dare(states, WEIGHTS, DareFlags(density=density)),
        "dare_ties": dare(states, WEIGHTS, DareFlags(density=density, inside="ties", as_peft=True)),
    }
    for name in ("q.lora_A", "q.lora_B", "up", "bias"):
        raw, cut = [state[name] for state in states], [pruned(state[name], density) for state in states]
        rescaled = [state[name] / density for state in left]
        expected = {
            "task_arithmetic": of_columns(raw, lambda column: weighted_sum(column, [0.7] * N)),
            "ties": of_columns(cut, lambda column: disjoint(column, w)),
            "magnitude_prune": of_columns(cut, lambda column: weighted_sum(column, [0.7] * N)),
            "dare_linear": of_columns(rescaled, lambda column: weighted_sum(column, w)),
            "dare_ties": of_columns(rescaled, lambda column: disjoint(column, w)),
        }
        for rule, values in expected.items():
            assert (merged[rule][name] - values).abs().max() < 1e-12, (rule, name)


# ---- DARE


def test_dare_drops_and_rescales():
    (state,) = sources(1)
    merged = dare([state], torch.tensor([1.0]), DareFlags(density=0.25))["q.lora_A"]
    kept = merged != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(merged[kept], state["q.lora_A"].double()[kept] / 0.25)


def test_dare_gives_the_source_in_expectation():
    """The mean over seeds m of a value x has the deviation |x| sqrt((1 - p) / (p m))."""
    state, p, m = {"x": draws("dare", 40)}, 0.3, 400
    mean = sum(dare([state], torch.tensor([1.0]), DareFlags(density=p, seed=seed))["x"] for seed in range(m)) / m
    deviations = (mean - state["x"]) / (state["x"].abs() * ((1 - p) / (p * m)) ** 0.5)
    assert deviations.abs().max() < 4 and 0.7 < deviations.std() < 1.3


def test_what_dare_drops_is_a_function_of_its_seed_and_its_source():
    one, other = sources(2)
    kept = dropped(one, 0.5, 1)
    torch.rand(5)  # the stream is its own
    again = dropped(dict(reversed(one.items())), 0.5, 1)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    masks = [dropped(state, 0.5, seed)["up"] != 0 for state, seed in ((one, 1), (one, 2), (other, 1))]
    assert not any(torch.equal(masks[0], mask) for mask in masks[1:])
    assert torch.equal(dropped({"x": torch.ones(12)}, 0.5, 42)["x"], torch.tensor(STREAM, dtype=torch.float64))


STREAM = [0, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0]


# ---- the SVD family against numpy in float64, without its svd where there is another way


def numpy_products(states) -> list[np.ndarray]:
    return [state["q.lora_A"].double().numpy() @ state["q.lora_B"].double().numpy() for state in states]


def inverse_root(gram: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram)
    return vectors / np.sqrt(values) @ vectors.T


def best_of_rank(M: np.ndarray, rank: int) -> np.ndarray:
    """The projection of M on the top eigenvectors of M M^T."""
    top = np.linalg.eigh(M @ M.T)[1][:, -rank:]
    return top @ top.T @ M


@pytest.mark.parametrize("rule", [svd, core_space])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_sums_are_cut_to_the_best_of_their_rank(rule, rank):
    flags = SvdFlags(rank=rank) if rule is svd else CoreSpaceFlags(rank=rank, inside="linear")
    merged = rule(sources(), WEIGHTS, flags)
    M = sum(w * M for w, M in zip(WEIGHTS.double().numpy(), numpy_products(sources()), strict=True))
    size = rank or r
    assert merged["q.lora_A"].shape == (d, size) and merged["q.lora_B"].shape == (size, h)
    expected = best_of_rank(M, size) * size / r  # alpha / size is the scale of a LoRA of this rank
    assert np.abs(product(merged).numpy() - expected).max() < 1e-6


def test_the_exact_rank_loses_nothing_and_says_so(caplog):
    with caplog.at_level("INFO", "pewe"):
        exact = svd(sources(), WEIGHTS, SvdFlags(rank=-1))
        svd(sources(), WEIGHTS, SvdFlags())
    M = sum(w * M for w, M in zip(WEIGHTS.double().numpy(), numpy_products(sources()), strict=True))
    assert exact["q.lora_A"].shape == (d, N * r)
    assert np.abs(product(exact).numpy() * r / (N * r) - M).max() < 1e-6
    values = np.linalg.eigvalsh(M @ M.T)[::-1]
    lost = [float(line.split(" of the squared")[0].split()[-1]) for line in caplog.messages]
    assert lost[0] < 1e-20 and lost[1] == pytest.approx(values[r:].sum() / values.sum(), rel=0.06)


def test_the_core_loses_nothing():
    states = sources()
    U, V, cores = core([(state["q.lora_A"].double(), state["q.lora_B"].double()) for state in states])
    assert U.shape == (d, N * r) and V.shape == (N * r, h)
    for state, C in zip(states, cores, strict=True):
        assert (U @ C @ V - product(state)).abs().max() < 1e-12


@pytest.mark.parametrize("inside", ["linear", "iso_c", "tsv_m"])
def test_the_core_of_products_says_what_that_of_their_factors_says(inside):
    flags = CoreSpaceFlags(inside=inside, rank=-1, scale=1.5)
    whole = core_space(
        [{"q": product(state)} for state in sources()], WEIGHTS, CoreSpaceFlags(inside=inside, scale=1.5)
    )
    assert (product(core_space(sources(), WEIGHTS, flags)) / N - whole["q"]).abs().max() < 1e-12


def full_rank(inside: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The product of an exact core merge of equal weights, in the scale of the sources, and their products."""
    merged = core_space(sources(), EQUAL, CoreSpaceFlags(inside=inside, rank=-1))
    return product(merged).numpy() * r / (N * r), numpy_products(sources())


def test_iso_c_has_the_directions_of_the_sum_and_equal_singular_values():
    found, products = full_rank("iso_c")
    total, rank = sum(products), N * r
    values, vectors = np.linalg.eigh(total.T @ total)
    values, vectors = np.sqrt(values[-rank:]), vectors[:, -rank:]
    assert np.abs(found - values.mean() * total @ (vectors / values) @ vectors.T).max() < 1e-6


def test_iso_c_cut_to_a_rank_keeps_the_first_directions_of_the_sum():
    found = product(core_space(sources(), EQUAL, CoreSpaceFlags(inside="iso_c"))).numpy()
    total = sum(numpy_products(sources()))
    values, vectors = np.linalg.eigh(total.T @ total)
    mean, top = np.sqrt(values[-N * r :]).mean(), vectors[:, -r:]
    assert np.abs(found - mean * total @ (top / np.sqrt(values[-r:])) @ top.T).max() < 1e-6


def test_tsv_m_makes_the_singular_vectors_of_all_sources_orthonormal():
    """1/N of the N r triples of a core matrix is r: all that a source has, so the full space says the same."""
    found, products = full_rank("tsv_m")
    left, middle, right = [], [], []
    for M in products:
        values, vectors = np.linalg.eigh(M.T @ M)
        values, vectors = np.sqrt(values[-r:]), vectors[:, -r:]
        left, middle, right = [*left, M @ vectors / values], [*middle, values], [*right, vectors]
    U, V = np.concatenate(left, 1), np.concatenate(right, 1)
    U, V = U @ inverse_root(U.T @ U), V @ inverse_root(V.T @ V)
    assert np.abs(found - U * np.concatenate(middle) @ V.T).max() < 1e-6


def test_tsv_m_keeps_a_share_of_matrices_of_full_rank():
    states = [{"up": state["up"]} for state in sources(2)]
    found = core_space(states, torch.tensor([0.5, 0.5]), CoreSpaceFlags())["up"]
    U, S, V = zip(*(np.linalg.svd(state["up"].double().numpy(), full_matrices=False) for state in states), strict=True)
    U, V = np.concatenate([u[:, :2] for u in U], 1), np.concatenate([v[:2] for v in V])  # 5 // 2 of each
    U, V = U @ inverse_root(U.T @ U), inverse_root(V @ V.T) @ V
    assert np.abs(found.numpy() - U * np.concatenate([s[:2] for s in S]) @ V).max() < 1e-6


def test_ties_in_the_core_is_ties_of_the_core_matrices():
    found = product(core_space(sources(), EQUAL, CoreSpaceFlags(inside="ties", density=0.5, rank=-1))).numpy()
    states = sources()
    As, Bs = ([state[f"q.lora_{side}"].double().numpy() for state in states] for side in "AB")
    U = np.linalg.svd(np.concatenate(As, 1), full_matrices=False)[0]
    V = np.linalg.svd(np.concatenate(Bs), full_matrices=False)[2]
    cores = [(U.T @ A @ B @ V.T).ravel().tolist() for A, B in zip(As, Bs, strict=True)]
    merged = np.array(ties_of_release(cores, 0.5)).reshape(N * r, N * r)
    assert np.abs(found * r / (N * r) - U @ merged @ V).max() < 1e-6


def test_knots_merges_the_coordinates_of_all_sources_in_one_basis():
    found = product(knots(sources(), EQUAL, KnotsFlags(density=0.5, rank=-1))).numpy()
    products = numpy_products(sources())
    U, S, V = np.linalg.svd(np.concatenate([M.T for M in products], 1), full_matrices=False)
    size = int((S > 1e-5).sum())
    parts = [part.ravel().tolist() for part in np.split(V[:size], N, axis=1)]
    merged = np.array(ties_of_release(parts, 0.5)).reshape(size, d)
    expected = 0.6 * (U[:, :size] * S[:size] @ merged).T
    assert np.abs(found * r / (N * r) - expected).max() < 1e-6


def test_knots_and_the_core_have_one_space():
    states = sources()
    pairs = [(state["q.lora_A"].double(), state["q.lora_B"].double()) for state in states]
    _, V, cores = core(pairs)
    U, S, parts = tied([A @ B for A, B in pairs])
    assert len(S) == N * r and (U @ U.mT - V.mT @ V).abs().max() < 1e-12  # of what all sources write to
    merged = core_space(states, WEIGHTS, CoreSpaceFlags(inside="linear", rank=-1))
    linear = sum(w * part for w, part in zip(WEIGHTS.double(), parts, strict=True))
    assert (product(merged) / N - (U * S @ linear).mT).abs().max() < 1e-12
    for part, C in zip(parts, cores, strict=True):  # the same sources, seen in either basis
        assert torch.allclose(decomposed(S[:, None] * part).S[:r], decomposed(C).S[:r])


@pytest.mark.parametrize("name", [name for name in CASES if name not in (*LINEAR_IN_FACTORS, "core_ties")])
def test_products_do_not_depend_on_the_scale_of_their_factors(name):
    """But for TIES in the core, whose basis is that of the factors."""
    rule, flags, _ = CASES[name]
    moved = [{**s, "q.lora_A": s["q.lora_A"] * 2**i, "q.lora_B": s["q.lora_B"] / 2**i} for i, s in enumerate(sources())]
    one, other = (product(rule(states, WEIGHTS, flags)) for states in (sources(), moved))
    assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_untrained_loras_stay_nothing(name):
    rule, flags, _ = CASES[name]
    states = [{**state, "q.lora_B": torch.zeros(r, h)} for state in sources()]
    merged = rule(states, EQUAL, flags)
    assert all(torch.isfinite(tensor).all() for tensor in merged.values()) and not product(merged).any()


# ---- what cannot be


def test_errors():
    states, flags = sources(2), TiesFlags()
    half = torch.tensor([0.5, 0.5])
    for broken, weights, own, text in [
        (states, torch.tensor([1.0]), flags, "2 states for weights of shape (1,)"),
        (states, torch.tensor([0.5, torch.nan]), flags, "must be finite"),
        (states, torch.zeros(2), flags, "all weights of a merge are 0"),
        (
            [states[0], {**states[1], "up": torch.full((7, 5), torch.inf)}],
            half,
            flags,
            "source 1: tensor up has values",
        ),
        ([states[0], {**states[1], "up": torch.zeros(5, 7)}], half, flags, "e.g. up"),
        ([states[0], {**states[1], "steps": torch.tensor([3, 5])}], half, flags, "whole numbers of tensor steps"),
        (states, half, TiesFlags(density=1.5), "--density must be at most 1"),
    ]:
        with pytest.raises(UserError, match=text.replace("(", r"\(").replace(")", r"\)")):
            ties(broken, weights, own)
    with pytest.raises(UserError, match="--density must be above 0"):
        dare(states, half, DareFlags(density=0.0))
    with pytest.raises(UserError, match="--inside cannot be 'iso'"):
        core_space(states, half, CoreSpaceFlags(inside="iso"))
    with pytest.raises(UserError, match="rank 11 is not possible, expected 1 to 10"):
        svd(states, half, SvdFlags(rank=11))
    plain = [{"up": state["up"]} for state in states]
    with pytest.raises(UserError, match="tensor up is of no LoRA"):
        svd(plain, half, SvdFlags())
    with pytest.raises(UserError, match="--rank 2 is for LoRA"):
        core_space(plain, half, CoreSpaceFlags(rank=2))
