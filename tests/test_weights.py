"""Weights and merging: the original's numbers, and properties that do not need them."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import METHODS, PAPER, draws
from safetensors.torch import load_file

from pewe.cli import log
from pewe.deltas.checkpoint import Checkpoints, ensemble_checkpoint, read_checkpoint, task_checkpoint, write_checkpoint
from pewe.errors import UserError
from pewe.files import read_table
from pewe.merging.average import merge
from pewe.merging.save import SoftmaxConfig, ensemble_weights
from pewe.merging.weights import allowed_sources, softmax_weights, temperature_for, top_sources, uniform_weights
from pewe.reporting.stats import effective_numbers
from pewe.similarity.table import similarity_frame
from task_list import QA_task_list
from unit_model import unit_model_average, unit_model_others

NAMES = ["a", "b", "c"]
ALL = allowed_sources(NAMES, NAMES)
S = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [2.0, 2.0, 0.0]])


def test_the_most_similar_sources_by_hand():
    ties = torch.tensor([[9.0, 1.0, 1.0], [3.0, 9.0, 1.0], [2.0, 5.0, 9.0]])
    assert top_sources(ties, 1, True, ALL).int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert top_sources(ties, 1, False, ALL).int().tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    for count in (2, 3, 7):
        assert top_sources(ties, count, True, ALL).equal(ALL)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("flags", [{"tem": 0.3}, {"effective": 2.5}, {"tem": 0.3, "orientation": "higher"}])
def test_top_k_keeps_the_largest_weights(tiny_checkpoints, tmp_path, count, flags):
    """final_weight.tsv against the renormalised weights without --top_k; one source alone is copied, never the own one."""
    tasks = QA_task_list[:5]
    values = draws("top k", 5, 5)
    rows = [(t, s, "all", f"{values[i, j]}") for i, t in enumerate(tasks) for j, s in enumerate(tasks)]
    path = tmp_path / "result.tsv"
    path.write_text("\n".join("\t".join(row) for row in [("target", "source", "scope", "value"), *rows]) + "\n")
    sources = tiny_checkpoints / "adapter" / "source"
    config = unit_model_others.Config(origin_data_path=str(path), source_ckpt_path=str(sources), quiet=True, **flags)
    frames = []
    for k in (0, count):
        out = tmp_path / str(k)
        unit_model_others.run(replace(config, save_ckpt_path=str(out), top_k=k))
        table = read_table(out / "final_weight.tsv", ["target", "source", "weight"])
        frames.append(table.pivot(index="target", columns="source", values="weight").loc[tasks, tasks])
    full, kept = (torch.tensor(frame.to_numpy()) for frame in frames)
    least = full.sort(1, descending=True).values[:, count - 1 : count]
    expected = torch.where(full >= least, full, 0.0)
    torch.testing.assert_close(kept, expected / expected.sum(1, keepdim=True))
    assert ((kept > 0).sum(1) == count).all() and not kept.diagonal().any()
    if count == 1:
        for i, task in enumerate(tasks):
            copied = read_checkpoint(ensemble_checkpoint(tmp_path / "1", task), "adapter")
            source = read_checkpoint(task_checkpoint(sources, tasks[int(kept[i].argmax())]), "adapter")
            assert all(copied[name].equal(source[name]) for name in source)


def test_softmax_by_hand_in_both_orientations():
    lower = softmax_weights(S, 0.5, False, ALL)
    higher = softmax_weights(S, 0.5, True, ALL)
    expected = 1 / (1 + math.exp(-(2 - 1) / 0.5))
    assert lower[0].tolist() == pytest.approx([0, expected, 1 - expected])
    assert higher[0].tolist() == pytest.approx([0, 1 - expected, expected])
    for W in (lower, higher, uniform_weights(ALL)):
        assert torch.allclose(W.sum(1), torch.ones(3, dtype=torch.float64)) and not W.diagonal().any()


def test_extreme_values_do_not_overflow():
    W = softmax_weights(S * 1e8, 1e-3, False, ALL)
    assert torch.isfinite(W).all() and W[0, 1] == 1


def test_effective_number_and_its_temperature():
    assert effective_numbers(uniform_weights(ALL).numpy()).tolist() == pytest.approx([2, 2, 2])
    assert effective_numbers(np.eye(3)).tolist() == [1, 1, 1]
    big = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) * 5
    allowed = allowed_sources("abcdefghi", "abcdefghi")
    for wanted in (1.5, 3.0, 7.0):
        tem = temperature_for(big, wanted, False, allowed)
        reached = np.median(effective_numbers(softmax_weights(big, tem, False, allowed).numpy()))
        assert reached.item() == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(UserError, match="between 1 and 8"):
        temperature_for(big, 8.0, False, allowed)


def test_one_hot_weights_return_that_source_and_merging_is_linear():
    generator = torch.Generator().manual_seed(0)
    states = [{"x": torch.randn(2, 3, generator=generator), "y": torch.randn(4, generator=generator)} for _ in NAMES]
    for j, merged in enumerate(merge(states, torch.eye(3))):
        assert all(torch.equal(merged[name], states[j][name]) for name in merged)
    W = softmax_weights(S, 1.0, False, ALL)
    for row, merged in zip(W, merge(states, W), strict=True):
        for name in merged:
            slow = sum(float(w) * state[name] for w, state in zip(row, states, strict=True))
            torch.testing.assert_close(merged[name], slow, rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="source 1: its tensors do not fit"):
        list(merge([states[0], {"x": torch.ones(2, 2), "y": torch.ones(4)}], torch.eye(2)))


def test_merging_in_blocks_from_files_equals_merging_in_memory(tmp_path):
    generator = torch.Generator().manual_seed(0)
    states = [{"x": torch.randn(2, 3, generator=generator), "y": torch.randn(4, generator=generator)} for _ in range(7)]
    paths = [tmp_path / f"{number}.pt" for number in range(7)]
    for number, (path, state) in enumerate(zip(paths, states, strict=True)):
        write_checkpoint(
            path, "lora", dict(sorted(state.items(), reverse=number % 2 == 1)), {}
        )  # the order is no matter
    files, W = Checkpoints(paths, "lora"), torch.rand(5, 7, generator=generator)
    loaded = Checkpoints(paths, "lora").loaded(10**6)
    assert files.loaded(1)[0] is not files[0] and loaded[0] is loaded[0]
    for memory in (1, 100, 10**6):  # blocks of one state, of two, and of all
        for one, two, three in zip(merge(states, W), merge(files, W, memory), merge(loaded, W, memory), strict=True):
            for name in one:
                torch.testing.assert_close(one[name], two[name])
                torch.testing.assert_close(one[name], three[name])
    write_checkpoint(paths[4], "lora", {"x": torch.ones(2, 3)}, {})
    with pytest.raises(UserError, match=r"4\.pt: 1 tensors are missing"):
        list(merge(files, W))


def test_a_checkpoint_of_a_merged_state_holds_that_state_only(tmp_path):
    states = [{"x": torch.ones(1000)}] * 3
    sizes = []
    for name, state in (("single", states[0]), ("merged", next(merge(states, torch.full((50, 3), 1 / 3))))):
        write_checkpoint(tmp_path / name, "lora", state, {})
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "b", 1.0), ("a", "b", 2.0)], "target 'a', source 'b' stands twice"),
        ([("a", "b", 1.0), ("b", "c", 2.0), ("a", "c", 1.0)], None),
        ([("a", "b", 1.0), ("a", "c", float("inf")), ("b", "c", 1.0)], "target 'a', source 'c' is inf"),
        ([("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", float("nan"))], "target 'b', source 'c' is missing"),
        ([("a", "b", 1.0), ("d", "c", 1.0)], "target 'a', source 'c' is missing"),
    ],
)
def test_similarity_tables_are_checked(rows, message):
    table = pd.DataFrame(rows, columns=["target", "source", "value"])
    if message is None:
        assert similarity_frame(table).loc["b", "c"] == 2.0
        return
    with pytest.raises(UserError, match=message):
        similarity_frame(table)


def compare_weights(ours, expected_path):
    expected = pd.read_csv(expected_path)
    merged = read_table(ours, ["target", "source", "weight"]).merge(expected, on=["target", "source"])
    assert len(merged) >= len(expected)
    column = "weight_y" if "weight_y" in merged else "value"
    assert (merged["weight_x" if "weight_x" in merged else "weight"] - merged[column]).abs().max() < 1e-5


def compare_checkpoints(ours, golden_folder, method):
    files = sorted(golden_folder.glob("without_*.safetensors"))
    assert files
    for path in files:
        task = path.stem.removeprefix("without_")
        merged, expected = read_checkpoint(ensemble_checkpoint(ours, task), method), load_file(path)
        assert merged.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


def test_average_of_the_original(golden, golden_checkpoints, tmp_path):
    config = unit_model_average.Config(
        task_list="QA_task_list",
        source_ckpt_path=str(golden_checkpoints / "adapter" / "source"),
        save_ckpt_path=str(tmp_path),
    )
    unit_model_average.run(config)
    compare_checkpoints(tmp_path, golden / "adapter" / "unit" / "average", "adapter")


@pytest.mark.parametrize("tem", [0.1, 1.0])
def test_loss_weighting_of_the_original(golden, golden_checkpoints, tmp_path, tem):
    table = pd.read_csv(golden / "adapter/similarity/Loss.csv").assign(scope="all")
    table.to_csv(tmp_path / "result.tsv", sep="\t", index=False)
    config = unit_model_others.Config(
        tem=tem,
        origin_data_path=str(tmp_path),
        save_ckpt_path=str(tmp_path / "out"),
        source_ckpt_path=str(golden_checkpoints / "adapter" / "source"),
    )
    folder = golden / "adapter" / "unit" / f"others_Loss_tem{tem}"
    with_checkpoints = any(folder.glob("without_*"))
    unit_model_others.run(replace(config, weights_only=not with_checkpoints))
    compare_weights(tmp_path / "out" / "final_weight.tsv", folder / "weights.csv")
    if with_checkpoints:
        compare_checkpoints(tmp_path / "out", folder, "adapter")


@pytest.mark.skipif(not PAPER.is_dir(), reason="the authors' logged matrix is not here")
def test_the_authors_matrix_gives_weights_and_a_heat_map_without_checkpoints(tmp_path, caplog):
    path = PAPER / "adapter_Loss_32x32.tsv"
    unit_model_others.run(
        unit_model_others.Config(origin_data_path=str(path), save_ckpt_path=str(tmp_path), weights_only=True)
    )
    table = read_table(tmp_path / "final_weight.tsv", ["target", "source", "weight"])
    frame = table.pivot(index="target", columns="source", values="weight")
    assert frame.shape == (32, 32) and frame.sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert frame.loc["eli5-askh"].nlargest(2).index.isin(["eli5-asks", "eli5-eli5"]).all()
    assert (tmp_path / "hot_pic_all.png").read_bytes().startswith(b"\x89PNG")


def slow_weights(similarities: dict[str, float], tem: float, sign: int) -> dict[str, float]:
    """Softmax of the sources' similarities, one number at a time."""
    exponents = {source: sign * value / tem for source, value in similarities.items()}
    powers = {source: math.exp(e - max(exponents.values())) for source, e in exponents.items()}
    return {source: power / sum(powers.values()) for source, power in powers.items()}


def check_ensemble(out, target: str, weights: dict[str, float], method: str, folder) -> None:
    """The stored weights of a target, and its checkpoint as the weighted sum of the sources in a folder."""
    table = read_table(out / "final_weight.tsv", ["target", "source", "weight"])
    stored = table[table["target"] == target].set_index("source")["weight"]
    assert stored.drop(target).to_dict() == pytest.approx(weights, abs=1e-6) and stored[target] == 0
    states = {source: read_checkpoint(task_checkpoint(folder, source), method) for source in weights}
    for name, tensor in read_checkpoint(ensemble_checkpoint(out, target), method).items():
        slow = sum(weight * states[source][name].double() for source, weight in weights.items())
        torch.testing.assert_close(tensor.double(), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_average_by_a_slow_loop(tiny_checkpoints, tmp_path, method):
    folder = tiny_checkpoints / method / "source"
    unit_model_average.run(
        unit_model_average.Config(
            task_list="QA_task_list", delta=method, source_ckpt_path=str(folder), save_ckpt_path=str(tmp_path)
        )
    )
    assert len(list(tmp_path.glob("without_*_checkpoint.pt"))) == 32
    for target in ("dream", "wiqa"):
        weights = {source: 1 / 31 for source in QA_task_list if source != target}
        check_ensemble(tmp_path, target, weights, method, folder)


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("tem", [0.1, 1.0])
def test_similarity_weighting_by_a_slow_loop(tiny_checkpoints, tmp_path, tem, higher):
    values = {t: dict(zip(QA_task_list, draws(t, 32).abs().tolist(), strict=True)) for t in QA_task_list}
    rows = [(t, s, "all", value) for t, row in values.items() for s, value in row.items()]
    table = pd.DataFrame(rows, columns=["target", "source", "scope", "value"])
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "result.tsv", sep="\t", index=False)  # by name, in any order
    (tmp_path / "config.json").write_text(json.dumps({"higher_is_more_similar": higher}))
    folder = tiny_checkpoints / "adapter" / "source"
    unit_model_others.run(
        unit_model_others.Config(
            tem=tem, origin_data_path=str(tmp_path), save_ckpt_path=str(tmp_path / "out"), source_ckpt_path=str(folder)
        )
    )
    for target in ("adversarialqa", "boolq", "wiqa"):
        others = {source: value for source, value in values[target].items() if source != target}
        weights = slow_weights(others, tem, 1 if higher else -1)
        check_ensemble(tmp_path / "out", target, weights, "adapter", folder)
    assert (tmp_path / "out" / "hot_pic_all.png").read_bytes().startswith(b"\x89PNG")


def test_orientation_comes_from_the_config_beside_the_table(tmp_path):
    rows = [(t, s, "all", 0.0 if t == s else v) for t in NAMES for s, v in zip(NAMES, (1.0, 5.0, 2.0), strict=True)]
    pd.DataFrame(rows, columns=["target", "source", "scope", "value"]).to_csv(
        tmp_path / "result.tsv", sep="\t", index=False
    )
    (tmp_path / "config.json").write_text('{"higher_is_more_similar": true}')
    config = unit_model_others.Config(
        origin_data_path=str(tmp_path), save_ckpt_path=str(tmp_path / "w"), weights_only=True
    )

    def best_source_of_a(**changes):
        unit_model_others.run(replace(config, **changes))
        table = read_table(tmp_path / "w" / "final_weight.tsv", ["target", "source", "weight"])
        rows = table[table["target"] == "a"]
        return rows.loc[rows["weight"].idxmax(), "source"]

    assert best_source_of_a() == "b"
    assert best_source_of_a(as_original=True) == best_source_of_a(orientation="lower") == "c"


def test_collapse_is_named_with_a_better_temperature(tmp_path, capsys):
    names = list("abcdefgh")
    generator = torch.Generator().manual_seed(0)
    rows = [(t, s, "all", float(torch.rand((), generator=generator))) for t in names for s in names]
    pd.DataFrame(rows, columns=["target", "source", "scope", "value"]).to_csv(
        tmp_path / "result.tsv", sep="\t", index=False
    )
    config = unit_model_others.Config(
        origin_data_path=str(tmp_path), save_ckpt_path=str(tmp_path / "w"), weights_only=True
    )
    unit_model_others.run(replace(config, tem=1e-4))
    assert "--effective 3" in capsys.readouterr().err
    unit_model_others.run(replace(config, effective=3.0))
    assert "--effective 3" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--effective chooses the temperature: 0\.5 would not be used"):
        unit_model_others.run(replace(config, effective=3.0, tem=0.5))


@pytest.mark.parametrize(("count", "wanted"), [(3, 1.5), (4, 2), (5, 2.5), (32, 3)])
def test_a_single_source_is_called_what_it_is_for_few_tasks_too(count, wanted, caplog):
    """The temperature that the warning gives has the effective number that it promises; where there is no choice, none."""
    S, others = draws("few", count, count).double(), ~torch.eye(count, dtype=torch.bool)
    log.propagate = True
    ensemble_weights(SoftmaxConfig(), S, 1e-4, True, others)
    said = caplog.text
    assert f"the median effective number of sources is 1.0: {count} of {count} targets" in said
    assert f"would give {wanted:g} (--effective {wanted:g})" in said
    found = softmax_weights(S, float(re.search(r"tem (\S+) would", said)[1]), True, others)
    assert np.median(effective_numbers(found.numpy())) == pytest.approx(wanted, rel=0.02)
    caplog.clear()
    ensemble_weights(SoftmaxConfig(), S, 10.0, True, others)
    ensemble_weights(SoftmaxConfig(), S[:2, :2], 1e-4, True, others[:2, :2])
    assert not caplog.text


def test_manual_division_averages_the_own_group(tiny_checkpoints, tmp_path):
    config = unit_model_average.Config(
        tasks=["boolq", "mc_taco", "eli5-askh", "eli5-asks", "eli5-eli5"],
        manual_division=True,
        source_ckpt_path=str(tiny_checkpoints / "adapter" / "source"),
        save_ckpt_path=str(tmp_path),
    )
    unit_model_average.run(config)
    table = read_table(tmp_path / "final_weight.tsv", ["target", "source", "weight"]).set_index(["target", "source"])[
        "weight"
    ]
    assert (
        table["boolq", "mc_taco"] == 1.0 and table["eli5-askh", "eli5-eli5"] == 0.5 and table["eli5-askh", "boolq"] == 0
    )
    with pytest.raises(UserError, match="only task of its group"):
        unit_model_average.run(replace(config, tasks=["boolq", "eli5-askh", "eli5-asks"]))
