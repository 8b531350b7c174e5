"""An ensemble says all that it was made from, is made only of what fits together, and leaves nothing of an earlier call."""

from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest
import torch

from pewe.deltas.checkpoint import ensemble_checkpoint, open_checkpoint, task_checkpoint, write_checkpoint
from pewe.errors import UserError
from pewe.files import hold, read_json, read_record, write_json, write_record, write_table
from pewe.identity import state_digest
from pewe.merging import save as ensemble
from pewe.merging.average import merge
from pewe.similarity.table import COLUMNS
from pewe.tuning.tune import TuneConfig, tune
from unit_model import (
    unit_model_average,
    unit_model_cos,
    unit_model_Euclidean,
    unit_model_Fisher,
    unit_model_others,
    unit_model_Performance,
    unit_model_RegMean,
)

TASKS = ["mini_read_towns", "mini_read_people", "mini_yesno_towns"]
OTHER = "mini_yesno_people"
MADE_FOR = {"lora_alpha": 8.0, "backbone": "t5", "model": "folder/t5"}
SCRIPTS = {
    "average": unit_model_average,
    "cos": unit_model_cos,
    "Euclidean": unit_model_Euclidean,
    "Performance": unit_model_Performance,
    "Fisher": unit_model_Fisher,
    "RegMean": unit_model_RegMean,
    "others": unit_model_others,
}


def state_of(number: float) -> dict[str, torch.Tensor]:
    return {"a.lora_A": torch.full((2, 3), float(number)), "a.lora_B": torch.full((3, 2), number + 0.5)}


class World:
    """Sources, deltas tuned from them, and the tables of a similarity and of scores."""

    def __init__(self, folder: Path):
        self.folder, self.sources, self.out = folder, folder / "sources", folder / "out"
        self.table, self.record = folder / "similarity/result.tsv", folder / "similarity/config.json"
        for number, task in enumerate([*TASKS, OTHER]):
            self.source(task, number)
            write_checkpoint(task_checkpoint(folder / "random", task), "lora", state_of(number + 3), MADE_FOR)
        for i, j in permutations(range(3), 2):
            path = task_checkpoint(folder / "pairs", f"{TASKS[i]}/{TASKS[j]}")
            write_checkpoint(path, "lora", state_of(i + 10 * j), MADE_FOR)
        rows = [(t, s, float(i + 2 * j)) for i, t in enumerate(TASKS) for j, s in enumerate(TASKS)]
        write_table(folder / "pairs/result.tsv", pd.DataFrame(rows, columns=["target", "source", "dev"]))
        self.write([(t, s, "all", value) for t, s, value in rows])

    def source(self, task: str, number: float, **made_for) -> None:
        path = task_checkpoint(self.sources, task)
        write_checkpoint(path, "lora", state_of(number), {**MADE_FOR, **made_for})

    def write(self, rows: list[tuple]) -> None:
        """A similarity table and its record, as a measure writes them."""
        write_table(self.table, pd.DataFrame(rows, columns=COLUMNS))
        tables = {"result.tsv": [ensemble.file_digest(self.table)]}
        about = {"measure": "Loss", "higher_is_more_similar": True, "finished": True, "tables": tables}
        write_record(self.record, about)

    def run(self, name: str, **flags):
        module = SCRIPTS[name]
        known = {
            "delta": "lora",
            "quiet": True,
            "save_ckpt_path": str(self.out),
            "source_ckpt_path": str(self.sources),
            "tuned_64shot_ckpt_path": f"{self.folder}/random",
            "tuned_ckpt_path": f"{self.folder}/pairs",
            "zero_result_path": f"{self.folder}/pairs/result.tsv",
            "origin_data_path": str(self.table),
            "tasks": list(TASKS),
            "tem": 1.0,
            "temperature": 1.0,
        }
        fields = module.Config.__dataclass_fields__
        module.run(module.Config(**{name: value for name, value in (known | flags).items() if name in fields}))
        path = self.out / "final_weight.tsv"
        return pd.read_csv(path, sep="\t").set_index(["target", "source"])["weight"] if path.is_file() else None

    def ensemble(self, task: str = TASKS[0]) -> tuple[dict, dict]:
        return open_checkpoint(ensemble_checkpoint(self.out, task), "lora")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


WITHOUT_STATISTICS = ["average", "cos", "Euclidean", "Performance", "others"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_task_named_twice_is_refused(world, name):
    with pytest.raises(UserError, match=f"--tasks names '{TASKS[2]}' twice"):
        world.run(name, tasks=[*TASKS, TASKS[2]])
    assert not world.out.exists()


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_one_task_has_no_source(world, name):
    with pytest.raises(UserError, match=f"no source for target '{TASKS[0]}' but itself"):
        world.run(name, tasks=[TASKS[0]])


def test_a_folder_in_the_place_of_a_file_costs_nothing_of_an_earlier_call(world):
    world.run("average")
    before = {path.name: path.read_bytes() for path in world.out.iterdir() if path.is_file()}
    taken = ensemble_checkpoint(world.out, TASKS[1])
    taken.unlink()
    taken.mkdir()
    with pytest.raises(UserError, match=f"{taken.name} is a folder"):
        world.run("average")
    assert {path.name: path.read_bytes() for path in world.out.iterdir() if path.is_file()} == {
        name: content for name, content in before.items() if name != taken.name
    }


def test_two_sources_have_half_the_weight_each(world):
    weights = world.run("average")
    assert weights[TASKS[0]].tolist() == [0.0, 0.5, 0.5]
    assert world.ensemble()[0]["a.lora_A"][0, 0] == 1.5


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_the_record_holds_all_that_it_was_made_from(world, name):
    world.run(name)
    record = read_record(world.out / "config.json")
    assert record["finished"] and record["files"].keys() == {
        "final_weight.tsv",
        "hot_pic_all.png",
        *(f"without_{task}_checkpoint.pt" for task in TASKS),
    }
    assert all(ensemble.file_digest(world.out / file) == found for file, found in record["files"].items())
    pair = f"{TASKS[0]}/{TASKS[1]}"
    source, number = (pair, 10) if name == "Performance" else (TASKS[1], 1)
    assert record["settings"]["sources"][source] == state_digest(state_of(number))
    compared = {"cos": (TASKS[1], 4), "Euclidean": (pair, 10)}.get(name)
    if compared:
        assert record["settings"]["tuned"][compared[0]] == state_digest(state_of(compared[1]))
    table = {"Performance": ("tables", 2), "others": ("similarity", 64)}.get(name)
    if table:
        assert len(record["settings"][table[0]]) == table[1]
    assert name == "average" or "used_temperature" in record["settings"]
    _, args = world.ensemble()
    assert MADE_FOR.items() <= args.items() and MADE_FOR.items() <= record["settings"].items()


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
@pytest.mark.parametrize(("entry", "value"), [("lora_alpha", 80.0), ("backbone", "another")])
def test_sources_that_do_not_fit_together_are_refused(world, name, entry, value):
    world.run(name)
    before = {path: path.read_bytes() for path in world.out.iterdir()}
    world.source(TASKS[1], 1, **{entry: value})
    pair = task_checkpoint(world.folder / "pairs", f"{TASKS[2]}/{TASKS[0]}")
    write_checkpoint(pair, "lora", state_of(2), {**MADE_FOR, entry: value})
    with pytest.raises(UserError, match=r"checkpoint-best\.pt was tuned (with --lora_alpha 80\.0|on another backbone)"):
        world.run(name)
    assert before == {path: path.read_bytes() for path in world.out.iterdir()}  # what was there is not lost


@pytest.mark.parametrize(("name", "folder"), [("cos", "random"), ("Euclidean", "pairs")])
def test_they_are_compared_with_deltas_like_them(world, name, folder):
    first = sorted((world.folder / folder).rglob("checkpoint-best.pt"))
    for path in first:
        write_checkpoint(path, "lora", state_of(1), {**MADE_FOR, "backbone": "another"})
    with pytest.raises(UserError, match=r"on another backbone .*they are compared with"):
        world.run(name)
    for path in first:
        write_checkpoint(path, "lora", {"a.lora_A": torch.ones(2, 3)}, MADE_FOR)
    with pytest.raises(UserError, match=r"1 tensors are missing, e\.g\. a\.lora_B"):
        world.run(name)


def test_nothing_of_an_earlier_call_stays(world):
    world.run("average", tasks=[*TASKS, OTHER])
    assert ensemble_checkpoint(world.out, OTHER).is_file()
    world.run("average")
    assert {path.name for path in world.out.glob("without_*")} == {f"without_{task}_checkpoint.pt" for task in TASKS}


def scoped(world, scopes: dict[str, list[str]]) -> None:
    rows = [
        (t, s, scope, float(abs(TASKS.index(t) - 2 * TASKS.index(s))))
        for scope, order in scopes.items()
        for t in order
        for s in order
    ]
    world.write(rows)


def test_nothing_of_other_scopes_stays(world):
    scoped(world, {"block.0": TASKS, "block.1": TASKS})
    world.run("average")
    world.run("others")  # whose weights are in folders of the scopes
    assert (world.out / "block.1/final_weight.tsv").is_file() and not list(world.out.glob("without_*"))
    assert read_record(world.out / "config.json")["scopes"] == ["block.0", "block.1"]
    scoped(world, {"block.0": TASKS, "block.2": TASKS})
    world.run("others")
    assert sorted(path.parent.name for path in world.out.glob("*/final_weight.tsv")) == ["block.0", "block.2"]


def test_an_interrupted_call_leaves_no_ensemble_of_an_earlier_one(world, monkeypatch):
    world.run("others", tem=1.0)
    write, calls = ensemble.write_checkpoint, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(ensemble, "write_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        world.run("others", tem=5.0)
    assert [path.name for path in world.out.glob("without_*")] == [f"without_{TASKS[0]}_checkpoint.pt"]
    assert not read_record(world.out / "config.json")["finished"]


def test_scopes_may_list_the_sources_in_another_order(world):
    scoped(world, {"block.0": TASKS, "block.1": TASKS[::-1]})
    world.run("others")
    first, second = (
        open_checkpoint(ensemble_checkpoint(world.out / f"block.{n}", TASKS[0]), "lora")[0] for n in (0, 1)
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    scoped(world, {"block.0": TASKS, "block.1": TASKS[:2]})
    with pytest.raises(UserError, match=f"scope 'block.1' has no source '{TASKS[2]}'"):
        world.run("others")


def scored_pairs(world: World, folder: str, scores: list[tuple], **settings) -> None:
    """A table of runs of the pairs and their records; a score is (run, number of the init, dev, number of the delta)."""
    rows = []
    for i, j in permutations(range(3), 2):
        pair = world.folder / folder / TASKS[i] / TASKS[j]
        for run, init, dev, delta in scores:
            about = {"init": state_digest(state_of(init)), **settings}
            write_record(pair / "p" / run / "run.json", {"settings": about})
            if delta is not None:
                write_checkpoint(pair / "p" / run / "checkpoint-best.pt", "lora", state_of(delta), MADE_FOR)
            rows.append((TASKS[i], TASKS[j], dev + (0.1 if j > i else 0.0), f"{TASKS[i]}/{TASKS[j]}/p/{run}"))
        if delta is not None:  # that of the last command is the best of the pair
            write_checkpoint(pair / "checkpoint-best.pt", "lora", state_of(delta), MADE_FOR)
    table = pd.DataFrame(rows, columns=["target", "source", "dev", "run"])
    write_table(world.folder / folder / "result.tsv", table)


def test_performance_takes_the_score_of_the_delta_that_it_merges(world):
    """Rows of earlier commands, of other deltas or of other starts, stay in the tables."""
    zero = f"{world.folder}/zero/result.tsv"
    scored_pairs(world, "pairs", [("new", 1, 0.5, 7)])
    scored_pairs(world, "zero", [("new", 1, 0.0, None)])
    expected = world.run("Performance", zero_result_path=zero)
    scored_pairs(world, "pairs", [("old", 2, 0.9, 3), ("new", 1, 0.5, 7)])
    scored_pairs(world, "zero", [("old", 2, 0.8, None), ("new", 1, 0.0, None)])
    assert world.run("Performance", zero_result_path=zero).equals(expected)
    table = pd.read_csv(zero, sep="\t")
    write_table(Path(zero), table[table["run"].str.contains("old")])
    with pytest.raises(
        UserError, match=f"zero/result.tsv has no dev score of target '{TASKS[0]}', source '{TASKS[1]}'"
    ):
        world.run("Performance", zero_result_path=zero)


@pytest.mark.parametrize("other", [{"data": {"dev": "b"}}, {"max_output_length": 9}, {"backbone": "other"}])
def test_performance_compares_scores_of_equal_dev_lines_and_lengths(world, other):
    settings = {"data": {"dev": "a"}, "max_output_length": 8, "backbone": "t5"}
    scored_pairs(world, "pairs", [("one", 1, 0.5, 7)], **settings)
    scored_pairs(world, "zero", [("one", 1, 0.2, None)], **(settings | other))
    with pytest.raises(
        UserError, match=r"has no dev score .*, with the delta that the tuned one began with, on its dev"
    ):
        world.run("Performance", zero_result_path=f"{world.folder}/zero/result.tsv")


def test_euclidean_is_the_distance_from_the_start(world):
    """Pairs that were tuned from sources of another time are refused."""
    for i, j in permutations(range(3), 2):
        path = task_checkpoint(world.folder / "pairs", f"{TASKS[i]}/{TASKS[j]}")
        begun = {"init": state_digest(state_of(j))}
        write_checkpoint(path, "lora", state_of(i + 10 * j), MADE_FOR | begun)
    world.run("Euclidean")
    world.source(TASKS[1], 5)
    said = rf"pairs/{TASKS[0]}/{TASKS[1]}/checkpoint-best\.pt began with another delta than .*sources/{TASKS[1]}"
    with pytest.raises(UserError, match=said):
        world.run("Euclidean")


def test_the_folder_of_a_similarity_is_not_written_in(world):
    """Its orientation would be lost: the same command would weigh the other way round the next time."""
    before = world.record.read_bytes()
    for name in WITHOUT_STATISTICS:
        with pytest.raises(UserError, match=r"--save_ckpt_path .*similarity is the folder of a similarity"):
            world.run(name, save_ckpt_path=str(world.table.parent))
    with pytest.raises(UserError, match=r"--output_dir .*similarity is the folder of a similarity"):
        tune(TuneConfig(do_train=True, output_dir=str(world.table.parent)))
    assert world.record.read_bytes() == before


def test_a_task_that_is_no_source_of_the_table(world):
    world.write([(t, s, "all", 1.0) for t in TASKS for s in TASKS[:2]])
    with pytest.raises(UserError, match=rf"result.tsv has no source '{TASKS[2]}'"):
        world.run("others")


def flip(path: Path) -> None:
    content = path.read_bytes()
    place = content.rindex(b"0")
    path.write_bytes(content[:place] + b"7" + content[place + 1 :])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: flip(w.table), "is not the table that .*config.json is of: make the matrix again"),
        (
            lambda w: write_record(w.record, {**read_record(w.record), "finished": False}),
            "is not finished: start its script",
        ),
        (lambda w: w.record.write_text(w.record.read_text().replace("true", "false")), "config.json is damaged, or"),
        (
            lambda w: w.record.write_text(w.record.read_text().replace('"sha256"', '"sha257"')),
            "config.json is damaged, or",
        ),
        (lambda w: w.record.write_text(w.record.read_text()[:-9]), "config.json is damaged, or"),
        (lambda w: w.record.write_text("[1]"), "config.json is damaged, or"),
        (lambda w: write_json(w.record, {"higher_is_more_similar": "no"}), "must be true or false, not 'no'"),
        (
            lambda w: w.table.write_text("\t".join(COLUMNS) + "\n"),
            "line 2: expected a target, a source, a scope and a value",
        ),
        (
            lambda w: w.table.write_text(w.table.read_text().replace("\tall\t", "\t\t", 1)),
            "line 2: .* must not be empty",
        ),
        (lambda w: w.table.write_text(w.table.read_text().replace(TASKS[0], "", 1)), "line 2: .* must not be empty"),
    ],
)
def test_a_table_that_is_not_what_its_record_says_is_refused(world, spoil, message):
    world.run("others")
    before = {path: path.read_bytes() for path in world.out.iterdir()}
    spoil(world)
    with pytest.raises(UserError, match=message):
        world.run("others")
    assert before == {path: path.read_bytes() for path in world.out.iterdir()}


def test_the_table_of_a_scope_is_checked_against_the_record_of_the_measure(world):
    part = world.table.parent / "block.0" / "result.tsv"
    part.parent.mkdir()
    part.write_bytes(world.table.read_bytes())
    with pytest.raises(UserError, match="is not the table"):
        world.run("others", origin_data_path=str(part))
    record = read_record(world.record)
    record["tables"]["block.0/result.tsv"] = [ensemble.file_digest(part)]
    write_record(world.record, record)
    assert world.run("others", origin_data_path=str(part)).equals(world.run("others"))


def test_a_table_of_ones_own_needs_no_record(world):
    higher = world.run("others")
    world.record.unlink()
    flip(world.table)
    lower = world.run("others")
    assert (higher[TASKS[0]].iloc[1] < higher[TASKS[0]].iloc[2]) and (lower[TASKS[0]].iloc[1] > lower[TASKS[0]].iloc[2])
    write_json(world.record, {"higher_is_more_similar": True})
    flipped = world.run("others")
    assert flipped[TASKS[0]].iloc[1] < flipped[TASKS[0]].iloc[2]
    assert read_json(world.out / "config.json")["settings"]["higher_is_more_similar"] is True


def test_weights_must_be_finite(world):
    part = ensemble.Part(TASKS, TASKS, torch.full((3, 3), float("nan")), "x", None)
    config = ensemble.EnsembleConfig(save_ckpt_path=str(world.out))
    with pytest.raises(UserError, match=f"the weights of target '{TASKS[0]}' are not finite"):
        ensemble.save(config, [part], {}, {})


def test_two_at_once(world):
    with hold(world.out), pytest.raises(UserError, match=r"out is in use by process \d+"):
        world.run("average")


def test_whole_numbers_are_equal_or_refused():
    states = [{"w": torch.tensor(values), "n": torch.tensor([5, 6])} for values in ([1.0, 3.0], [2.0, 4.0])]
    (merged,) = merge(states, torch.tensor([[0.5, 0.5]]))
    assert merged["n"].tolist() == [5, 6] and merged["n"].dtype == torch.int64 and merged["w"].tolist() == [1.5, 3.5]
    states[1]["n"] = torch.tensor([5, 7])
    with pytest.raises(UserError, match="source 'b': the whole numbers of tensor n are not those of source 'a'"):
        list(merge(states, torch.tensor([[0.5, 0.5]]), names=["a", "b"]))
    states[1]["n"] = torch.tensor([5.0, 6.0])
    with pytest.raises(UserError, match=r"source 1: tensor n is of torch\.float32; only floats"):
        list(merge(states, torch.tensor([[0.5, 0.5]])))
    with pytest.raises(UserError, match=r"source 0: tensor z is of torch\.complex64"):
        list(merge([{"z": torch.ones(2, dtype=torch.complex64)}], torch.ones(1, 1)))


def test_floats_are_merged_in_float32():
    """Whatever the dtype of the first source: 2e5 is beyond float16, 257 beyond bfloat16's digits."""
    for first in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        states = [{"w": torch.tensor([1.0], dtype=first)}, {"w": torch.tensor([2e5])}, {"w": torch.tensor([514.0])}]
        merged = [state["w"] for state in merge(states, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.5]]))]
        assert torch.equal(torch.cat(merged), torch.tensor([100000.5, 257.0]))


@pytest.mark.parametrize(
    ("value", "dtype", "weights", "message"),
    [
        (float("nan"), torch.float32, [0.5, 0.5], "source 'b': tensor w has values that are not finite"),
        (float("inf"), torch.float16, [0.5, 0.5], "source 'b': tensor w has values that are not finite"),
        (1e300, torch.float64, [0.5, 0.5], "source 'b': tensor w has values that are not finite"),
        (3e38, torch.float32, [0.5, 2.0], "source 'b': tensor w is beyond float32 once weighted"),
        (1.0, torch.float32, [0.5, float("nan")], "the weights of an ensemble must be finite"),
    ],
)
def test_a_result_that_is_not_finite_names_tensor_and_source(value, dtype, weights, message):
    states = [
        {"v": torch.ones(3), "w": torch.ones(2)},
        {"v": torch.ones(3), "w": torch.tensor([1.0, value], dtype=dtype)},
    ]
    with pytest.raises(UserError, match=message):
        list(merge(states, torch.tensor([[1.0, 0.0], weights]), names=["a", "b"]))
