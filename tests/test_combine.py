"""Any weights with any rule: `--combine`, its flags and its base."""

from importlib import import_module

import pytest
import torch
from test_ensemble_record import TASKS, WITHOUT_STATISTICS, World, state_of

from pewe.cli import main
from pewe.deltas.checkpoint import task_checkpoint, write_checkpoint
from pewe.errors import UserError
from pewe.files import read_record
from pewe.identity import state_digest
from pewe.merging.combine import Combiner
from pewe.merging.rules import RULES
from pewe.merging.save import read_states
from unit_model import ENSEMBLES, listed, unit_model_average

CASES = [
    ("task_arithmetic", {"scale": 0.7}, "zero"),
    ("ties", {"density": 0.5}, "zero"),
    ("dare", {"density": 0.5, "seed": 3}, "zero"),
    ("svd", {"rank": 2}, ""),
    ("core_space", {"inside": "linear"}, ""),
    ("knots", {}, ""),
]
TIES = {"combine": "ties", "base": "zero"}
TIES_FLAG = {"combine": "ties"}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize(("rule", "flags", "base"), CASES)
def test_a_rule_by_its_script_is_the_rule_by_hand(world, rule, flags, base):
    given = [f"{name}={value}" for name, value in flags.items()]
    weights = world.run("others", combine=rule, combine_flags=given, base=base)
    row = torch.tensor(weights[TASKS[0]].to_numpy())
    one = RULES[rule]
    expected = one.merge([state_of(1), state_of(2)], row[row > 0], one.flags(**flags))
    state, _ = world.ensemble()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, expected[name].float(), atol=1e-6)
    combined = read_record(world.out / "config.json")["settings"]["combined"]
    assert {"rule": rule, **flags}.items() <= combined.items() and combined.get("base", "") == base


@pytest.mark.parametrize(("rule", "flags", "base"), [("average", {}, ""), *CASES])
def test_all_targets_at_once_are_those_one_by_one(world, rule, flags, base):
    given = [f"{name}={value}" for name, value in flags.items()]
    config = unit_model_average.Config(delta="lora", combine=rule, combine_flags=given, base=base)
    states = read_states(str(world.sources), "lora", TASKS)
    combiner = Combiner(config, states, TASKS, str(world.sources))
    W = torch.tensor([[0.0, 0.7, 0.3], [0.4, 0.0, 0.6], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for row, merged in zip(W, combiner.merge(W), strict=True):
        (alone,) = combiner.merge(row[None])
        assert all(torch.equal(alone[name], tensor) for name, tensor in merged.items())
    assert {rule for rule, _, _ in CASES} | {"average"} == {name for name, one in RULES.items() if not one.statistics}


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_every_script_takes_every_rule(world, name):
    world.run(name)
    plain, settings = world.ensemble()[0], read_record(world.out / "config.json")["settings"]
    world.run(name, **TIES, combine_flags=["scale=0.5", "density=1.0"])
    found = read_record(world.out / "config.json")["settings"]
    assert "combined" not in settings and found["combined"]["rule"] == "ties"
    for one, other in zip(plain.values(), world.ensemble()[0].values(), strict=True):
        assert torch.allclose(one, 2 * other, atol=1e-6)  # all entries are positive: the mean, times 0.5


def common(world, number: float, said: float | None = None) -> str:
    """All sources began with `state_of(number)`, or say that they began with another; the file of that state."""
    base = world.folder / "base.pt"
    write_checkpoint(base, "lora", state_of(number), {})
    for place, task in enumerate(TASKS):
        world.source(task, place, init=state_digest(state_of(number if said is None else said)))
    return str(base)


def test_differences_from_a_common_base(world):
    base = common(world, 0.5)
    world.run("average", combine="task_arithmetic", combine_flags=["scale=0.5"], base=base)
    expected = {name: tensor + 0.5 * (0.5 + 1.5) for name, tensor in state_of(0.5).items()}  # of states 1 and 2
    assert all(torch.allclose(tensor, expected[name]) for name, tensor in world.ensemble()[0].items())
    combined = read_record(world.out / "config.json")["settings"]["combined"]
    assert combined["base"] == state_digest(state_of(0.5)) and combined["scale"] == 0.5


def test_sources_without_a_common_base_are_refused(world):
    with pytest.raises(UserError, match=r"--combine ties takes differences .* as --base, or --base zero"):
        world.run("average", combine="ties")
    base = common(world, 0.5, said=0.75)
    with pytest.raises(UserError, match=r"began with another delta; expected --base .*base\.pt, or give --base zero"):
        world.run("average", combine="ties", base=base)
    for place, task in enumerate(TASKS):
        world.source(task, place)
    with pytest.raises(UserError, match="does not say which delta it began with"):
        world.run("average", combine="ties", base=base)
    assert not world.out.exists()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("others", {"combine": "tise"}, "--combine cannot be 'tise'; did you mean 'ties'"),
        ("others", {**TIES, "combine_flags": ["densty=0.3"]}, "unknown flag '--densty=0.3'; did you mean '--density'"),
        ("others", {**TIES, "combine_flags": ["density=2.0"]}, "--density must be at most 1"),
        ("average", {"combine": "svd", "base": "zero"}, "--base zero: --combine svd takes no differences"),
        ("average", {"combine_flags": ["density=0.3"]}, "unknown flag '--density=0.3'"),
        ("Performance", {"combine": "fisher"}, "--combine fisher needs statistics"),
        ("RegMean", {"combine": "ties"}, "--combine cannot be 'ties'"),
        ("RegMean", {"combine_flags": ["alpha=1"]}, "this script has the flags of its rule itself"),
        ("average", {"combine": "regmean"}, r"there is no file .*statistics\.safetensors; run python -m pewe\.merging"),
    ],
)
def test_what_a_rule_cannot_do_is_said(world, name, flags, message):
    with pytest.raises(UserError, match=message):
        world.run(name, **flags)


def test_products_are_of_lora_only(world):
    for place, task in enumerate(TASKS):
        write_checkpoint(
            task_checkpoint(world.sources, task), "adapter", {"a.adapter_A": torch.full((2, 3), place + 1.0)}, {}
        )
    with pytest.raises(UserError, match="--combine svd is for lora, not --delta adapter"):
        world.run("average", delta="adapter", combine="svd")


def test_a_row_with_a_combiner_is_a_listed_init_with_a_flag():
    row = ENSEMBLES["Loss+ties"]
    assert (row.script, row.needs, row.flags) == (ENSEMBLES["Loss"].script, (("similarity", "Loss"),), TIES_FLAG)
    best = ENSEMBLES["Best_source+svd"]
    assert best.needs == (("similarity", "Loss"),) and best.flags == {"top_k": 1, "combine": "svd"} and not best.measure
    assert "Loss+ties" not in list(ENSEMBLES) and "Los+ties" not in ENSEMBLES and "Random+ties" not in ENSEMBLES
    assert [listed(name) for name in ("Loss", "Loss+ties", "GraNd_block+ties/encoder.block.0")] == [
        "Loss",
        "Loss",
        "GraNd_block",
    ]


def test_sources_that_began_with_different_deltas_are_recorded_as_such(world):
    def inits(base: str) -> str:
        world.run("average", combine="ties", base=base)
        return read_record(world.out / "config.json")["settings"]["combined"]["inits"]

    assert inits("zero") == "unlike or unknown"
    assert inits(common(world, 0.5)) == inits("zero") == "common"
    world.source(TASKS[0], 0, init="another")
    assert inits("zero") == "unlike or unknown"


@pytest.mark.parametrize("name", ["average", "Fisher", "RegMean", "LoraHub", "gradient", "soup", "scale", "arrow"])
@pytest.mark.parametrize("flag", ["--effective", "--top_k"])
def test_a_script_without_a_softmax_has_no_flags_of_one(name, flag, capsys):
    """They were accepted and changed nothing."""
    script = import_module(f"unit_model.unit_model_{name}")
    with pytest.raises(SystemExit):
        main(script.run, script.Config, args=[flag, "2"])
    assert f"unknown flag '{flag}'" in capsys.readouterr().err
