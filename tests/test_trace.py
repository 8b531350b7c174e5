"""Outcomes on the test lines along the way (--trace_test): likelihoods by a slow loop; a look changes nothing."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import MINI_TASKS, SMALL, filled, small, tiny_t5, tuning_config

import pewe.tuning.outcomes
import pewe.tuning.session
from pewe.backbone import Backbone
from pewe.data import Encoded, Example
from pewe.deltas.attach import attach_delta
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.files import read_record, read_table
from pewe.identity import PROVENANCE
from pewe.tuning.config import TuneConfig
from pewe.tuning.evaluate import chunks, log_likelihoods
from pewe.tuning.runs import COLUMNS
from pewe.tuning.tune import tune


def split(lines: int, seed: int) -> Encoded:
    """Lines of unequal lengths; every third has two answers."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int) -> tuple[int, ...]:
        length = int(torch.randint(1, most, (1,), generator=generator))
        return tuple(torch.randint(2, 96, (length,), generator=generator).tolist())

    examples = tuple(Example("x", ("y",) * (1 + (line % 3 == 0))) for line in range(lines))
    outputs = tuple(tuple(ids(5) for _ in example.outputs) for example in examples)
    return Encoded("task", examples, tuple(ids(9) for _ in examples), outputs)


def likelihoods(backbone: Backbone, delta: Tunable, splits: list[Encoded], batch_size: int) -> list[list[float]]:
    """Of each member and line, from all chunks."""
    found = [[0.0] * len(own.inputs) for own in splits]
    for chunk in chunks(backbone, delta, splits, batch_size):
        labels = [own.labels()[i] for own, lines in zip(splits, chunk.lines, strict=True) for i in lines]
        values = iter(log_likelihoods(chunk.t5, chunk.encoded, chunk.layout, labels).tolist())
        for own, lines in zip(found, chunk.lines, strict=True):
            for i in lines:
                own[i] = next(values)
    return found


@pytest.mark.parametrize("name", ["adapter", "lora", "prefix"])
def test_likelihoods_by_a_slow_loop(name):
    """transformers' own loss of one line and one delta at a time."""
    splits = [split(7, 1), split(3, 2)]
    delta, states = filled(tiny_t5(dropout_rate=0.1), name, 2)
    backbone = Backbone(delta.backbone_model, None, torch.device("cpu"))
    delta.backbone_model.train()  # there is no dropout in a score
    found = [likelihoods(backbone, delta, splits, batch_size) for batch_size in (2, 50)]
    for k, (state, own) in enumerate(zip(states, splits, strict=True)):
        single = attach_delta(tiny_t5(), small(name), 1)
        single.load([state])
        losses = [
            single.backbone_model(input_ids=torch.tensor([line]), labels=torch.tensor([answers[0]])).loss.item()
            for line, answers in zip(own.inputs, own.outputs, strict=True)
        ]
        for by_line in found:
            assert by_line[k] == pytest.approx([-loss for loss in losses], rel=1e-5)


@pytest.fixture
def config(tiny_backbone, tiny_data, tmp_path) -> TuneConfig:
    own = dict(
        tasks=list(MINI_TASKS[:2]), train_iters=4, valid_interval=2, stack=2, trace_test=[0, 1, 4], **SMALL["adapter"]
    )
    return tuning_config(tiny_backbone, tiny_data, tmp_path / "traced", **own)


def results(config: TuneConfig) -> list[dict]:
    """The stored results of a folder of runs."""
    tune(config)
    folder = Path(config.output_dir)
    return [read_record(path)["result"] for path in sorted(folder.glob("*/*/*/run.json"))]


def test_a_look_at_the_test_lines_changes_nothing(config, tmp_path):
    traced, plain = results(config), results(replace(config, output_dir=str(tmp_path / "plain"), trace_test=[]))
    for one, other in zip(traced, plain, strict=True):
        trace = one.pop("trace")
        assert {name for name in one if one[name] != other[name]} <= {"checkpoint", "history"}  # its args name the flag
        assert one["history"][1:] == other["history"][1:]
        assert [(point["point"], point["updates"]) for point in trace[:3]] == [("0", 0), ("1", 1), ("4", 4)]
        assert (trace[3]["point"], trace[3]["updates"], trace[3]["test"]) == ("best", one["best_updates"], one["test"])
        of_the_best = [point for point in trace[:3] if point["updates"] == one["best_updates"]]
        assert all(point["log_likelihood"] == pytest.approx(trace[3]["log_likelihood"]) for point in of_the_best)
        assert len({point["log_likelihood"] for point in trace[:3]}) == 3
    table = read_table(tmp_path / "traced/result.tsv", [*COLUMNS, "test_1", "log_likelihood_best"])
    assert table["test_best"].tolist() == table["test"].tolist()
    assert list(read_table(tmp_path / "plain/result.tsv", COLUMNS).columns) == COLUMNS


def test_every_look_is_in_what_a_run_has_cost(config, tmp_path):
    """That before the first update, too."""
    plain, spent = replace(config, output_dir=str(tmp_path / "plain"), trace_test=[]), []
    for one in (config, plain):
        best = [result["best_updates"] for result in results(one)]
        records = [read_record(path) for path in Path(one.output_dir).glob("*/*/*/run.json")]
        spent.append(sum(record[PROVENANCE]["measured"]["lines"] for record in records))
    tests = {len(path.read_text().splitlines()) for path in Path(config.task_dir).glob(f"{MINI_TASKS[0]}/*_test.tsv")}
    looks = [3 - (step in config.trace_test) for step in best]  # beside the one at the end that both have
    assert spent[0] - spent[1] == sum(looks) * tests.pop()


@pytest.mark.parametrize("points", [[1], [0], [2], [4]])
def test_the_best_step_is_looked_at_once(points, config, tmp_path, monkeypatch):
    """What was noted there along the way is not computed again, beside members that have it to come."""
    calls = count()
    monkeypatch.setattr(pewe.tuning.session, "evaluate", lambda *_: [(number := next(calls)) / 100, -number / 100])
    every = results(replace(config, trace_test=[0, 2, 4]))
    assert [one["best_updates"] for one in every] == [0, 4]  # so that for some points one of the stack is left
    looked = []
    whole = pewe.tuning.outcomes.outcomes

    def counting(backbone, delta, splits, *rest):
        looked.append(len(splits))
        return whole(backbone, delta, splits, *rest)

    monkeypatch.setattr(pewe.tuning.outcomes, "outcomes", counting)
    calls = count()
    few = results(replace(config, output_dir=str(tmp_path / "few"), trace_test=points))
    for one, other in zip(every, few, strict=True):
        assert one["trace"][-1] == pytest.approx(other["trace"][-1])
        assert one["test"] == other["test"]
    assert sum(looked) == sum(one["best_updates"] not in points for one in every)


def test_a_killed_run_has_the_same_trace(config, tmp_path, monkeypatch):
    whole = results(config)
    config = replace(config, output_dir=str(tmp_path / "killed"))
    update = pewe.tuning.session.Session._update
    for deadly in (2, 4):  # behind a point that is not in the resume file yet; behind one that is

        def dying(session, number, deadly=deadly):
            if number == deadly:
                raise KeyboardInterrupt
            return update(session, number)

        monkeypatch.setattr(pewe.tuning.session.Session, "_update", dying)
        with pytest.raises(KeyboardInterrupt):
            tune(config)
    monkeypatch.setattr(pewe.tuning.session.Session, "_update", update)
    assert [one["trace"] for one in results(config)] == [one["trace"] for one in whole]


def test_points_that_no_run_can_have_are_refused(config):
    with pytest.raises(UserError, match="--trace_test 4: a run ends after 3 updates"):
        tune(replace(config, train_iters=3))
    with pytest.raises(UserError, match="--trace_test scores the test lines: give --do_predict"):
        tune(replace(config, do_predict=False))
