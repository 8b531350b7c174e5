"""A similarity matrix is continued, and read by an ensemble, only if it is what the record beside it says."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import MINI_TASKS, flags_of, small, tiny_t5

import dev_all_ckpt
import pewe.similarity.loop
import pewe.similarity.matrix
from get_similarity import MEASURES, get_block, get_GraNd, get_Loss
from pewe.cli import parse
from pewe.data import TaskConfig
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import BACKBONE, task_checkpoint, write_checkpoint
from pewe.deltas.config import ScoredDeltaConfig
from pewe.errors import UserError
from pewe.files import hold, read_record
from pewe.model_files import BackboneConfig
from pewe.similarity.config import SimilarityConfig, TargetDeltas
from pewe.similarity.loop import run
from pewe.similarity.tasks import TasksConfig
from pewe.tuning.config import TrainConfig

RESULT = "result.tsv"


@pytest.fixture(scope="module")
def sources(tiny_backbone, tmp_path_factory) -> Path:
    """Three random adapters that do something."""
    out = tmp_path_factory.mktemp("sources")
    delta = attach_delta(tiny_t5(), small("adapter"))
    for number, task in enumerate(MINI_TASKS):
        generator = torch.Generator().manual_seed(number)
        state = {name: torch.randn(p.shape[1:], generator=generator) * 0.3 for name, p in delta.named.items()}
        write_checkpoint(task_checkpoint(out, task), "adapter", state, {})
    return out


@pytest.fixture
def config(tiny_backbone, tiny_data, sources, tmp_path) -> SimilarityConfig:
    return SimilarityConfig(
        model=str(tiny_backbone),
        task_dir=str(tiny_data),
        tasks=list(MINI_TASKS),
        adapter_size=4,
        device="cpu",
        max_input_length=24,
        max_output_length=6,
        source_ckpt_path=str(sources),
        output_dir=str(tmp_path / "Loss"),
        pictures=False,
        quiet=True,
        predict_batch_size=4,
    )


def loss(config, **changes):
    return run(get_Loss.MEASURE, replace(config, **changes))


def interrupted(config, monkeypatch, after: int, **changes) -> None:
    """The loss, killed after so many of its forwards; every row is written at once."""
    score, calls = pewe.similarity.loop.score_target, []

    def dying(*args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return score(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pewe.similarity.matrix.time, "monotonic", iter(range(0, 10_000, 10)).__next__)
        patch.setattr(pewe.similarity.loop, "score_target", dying)
        with pytest.raises(KeyboardInterrupt):
            loss(config, **changes)


def scored(config, monkeypatch, **changes) -> tuple[int, object]:
    """How many forwards it takes to complete the loss, and the table."""
    score, calls = pewe.similarity.loop.score_target, []
    with monkeypatch.context() as patch:
        patch.setattr(pewe.similarity.loop, "score_target", lambda *args: (calls.append(1), score(*args))[1])
        table = loss(config, **changes)
    return len(calls), table


def test_only_the_flags_that_it_needs():
    own = {field.name for field in fields(SimilarityConfig)}
    for kind in (BackboneConfig, TaskConfig, ScoredDeltaConfig):
        assert {field.name for field in fields(kind)} <= own
    assert own & {field.name for field in fields(TrainConfig)} == {"predict_batch_size", "seed"}
    assert not own & {"one_prefix", "full_train", "experts", "sparsity", "pemt_gate"}


def test_flags_of_tuning_are_accepted_and_said_to_be_ignored(capsys):
    config = parse(SimilarityConfig, ["--train_iters", "5", "--do_train", "--bsz_list", "4", "8", "--stack", "2"])
    assert config.stack == 2 and not hasattr(config, "train_iters")
    assert capsys.readouterr().err.strip().endswith("depends on them: --bsz_list, --do_train, --train_iters")
    assert parse(get_GraNd.GraNdConfig, ["--bsz_list", "32", "--seed", "3"]).bsz_list == [32]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="unknown flag '--train_itters'; did you mean '--train_iters'"):
        parse(SimilarityConfig, ["--train_itters", "5"])
    assert parse(TasksConfig, ["--apply_lora", "--one_prefix", "--as_original"]) == TasksConfig()
    assert capsys.readouterr().err.strip().endswith("--apply_lora, --as_original, --one_prefix")
    with pytest.raises(SystemExit):
        parse(SimilarityConfig, ["--help"])
    shown = capsys.readouterr().out
    hidden = ("train_iters", "one_prefix", "sparsity", "apply_adapter", "random_tuned_ckpt_path")
    assert not any(f"--{name} " in shown for name in hidden)


def test_only_measures_that_need_the_targets_deltas_have_their_folder(capsys):
    """The others take it as a flag that the original's scripts give."""
    for measure in MEASURES.values():
        assert issubclass(measure.config, TargetDeltas) == measure.needs_target
        parse(measure.config, ["--random_tuned_ckpt_path", "x"])
        assert ("ignored" in capsys.readouterr().err) == (not measure.needs_target)


def test_zero_shot_scores_show_no_flag_of_training(capsys):
    assert (
        parse(dev_all_ckpt.Config, ["--train_iters", "7"]).train_iters == 7
    )  # accepted: the original's script gives it
    with pytest.raises(SystemExit):
        parse(dev_all_ckpt.Config, ["--help"])
    shown = capsys.readouterr().out
    assert "--predict_batch_size " in shown and "--source_ckpt_path " in shown and "--seed " in shown
    assert not any(f"--{name} " in shown for name in ("train_iters", "optimizer", "do_train", "train_checkpoint"))


@pytest.mark.parametrize("stack", [1, 2, 3])
def test_rows_of_another_stack_are_completed(config, monkeypatch, stack):
    """Of a chunk of sources, some of which have a row, none may be taken for done."""
    whole = loss(config, output_dir=f"{config.output_dir}_whole")
    interrupted(config, monkeypatch, 4, stack=1)  # the first source on all targets, the second on one
    count, table = scored(config, monkeypatch, stack=stack)
    assert count == {1: 5, 2: 2 + 3, 3: 3}[stack]
    assert table["value"].to_numpy() == pytest.approx(whole["value"].to_numpy(), rel=1e-5)
    assert len(table) == 9


def test_a_finished_matrix_is_not_computed_again(config, monkeypatch):
    first = loss(config)
    before = (Path(config.output_dir) / RESULT).read_bytes()
    count, table = scored(config, monkeypatch, stack=2)
    assert count == 0 and table.equals(first) and (Path(config.output_dir) / RESULT).read_bytes() == before


@pytest.mark.parametrize("when", ["finished", "interrupted"])
def test_a_changed_byte_of_the_table_or_record_is_noticed(config, monkeypatch, when):
    out = Path(config.output_dir)
    clean = loss(config, output_dir=f"{out}_clean", stack=1)
    if when == "finished":
        loss(config, stack=1)
    else:
        interrupted(config, monkeypatch, 4, stack=1)
    for name in (RESULT, "config.json"):
        content = (out / name).read_bytes()
        place = content.rindex(b".") + 1  # a decimal of a value; of the record, a version
        digit = b"7" if content[place : place + 1] != b"7" else b"3"
        (out / name).write_bytes(content[:place] + digit + content[place + 1 :])
        count, table = scored(config, monkeypatch, stack=1)
        assert count == 9 and table.equals(clean), name
        assert (out / "result.previous.tsv").is_file()


def test_a_table_of_another_run_is_not_continued(config, monkeypatch):
    out = Path(config.output_dir)
    other = loss(config, output_dir=f"{out}_other", predict_batch_size=2)
    interrupted(config, monkeypatch, 4, stack=1)
    shutil.copy(f"{out}_other/{RESULT}", out / RESULT)
    count, table = scored(config, monkeypatch, stack=1)
    assert count == 9 and not table["value"].equals(other["value"])


def test_killed_between_record_and_table(config, monkeypatch):
    """The record names the table that it is about to replace, too."""
    out = Path(config.output_dir)
    interrupted(config, monkeypatch, 4, stack=1)
    write = pewe.similarity.matrix.write_record

    def dying(*args):
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pewe.similarity.matrix, "write_record", dying)
        with pytest.raises(KeyboardInterrupt):
            loss(config, stack=1)
    assert len(read_record(out / "config.json")["tables"][RESULT]) == 2
    assert scored(config, monkeypatch, stack=1)[0] == 5 and not list(out.glob(".*.tmp"))
    record = read_record(out / "config.json")
    assert record["finished"] and len(record["tables"][RESULT]) == 1


def test_another_backbone_under_the_same_name(config, tiny_backbone, tmp_path, monkeypatch):
    folder = tmp_path / "t5"
    shutil.copytree(tiny_backbone, folder)
    first = loss(config, model=str(folder))
    assert scored(config, monkeypatch)[0] == 0  # the same content under another name
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tiny_t5(vocab_size=vocabulary, d_ff=44).save_pretrained(folder)
    count, table = scored(config, monkeypatch, model=str(folder))
    assert count > 0 and not table["value"].equals(first["value"])


@pytest.mark.parametrize("measure", [get_Loss.MEASURE, get_block.MEASURE], ids=lambda measure: measure.name)
@pytest.mark.parametrize(
    ("made_for", "said"),
    [({"lora_alpha": 12.0}, r"with --lora_alpha 12\.0, not 6\.0"), ({BACKBONE: "other"}, "on another backbone")],
)
def test_deltas_made_for_another_scale_or_backbone_are_refused(config, tmp_path, measure, made_for, said):
    """Of sources, and of deltas tuned on the targets."""
    delta, use = attach_delta(tiny_t5(), small("lora")), {"lora_r": 3, "lora_alpha": 6.0}
    for folder, own in (("good", {}), ("bad", made_for)):
        for task in MINI_TASKS:
            write_checkpoint(task_checkpoint(tmp_path / folder, task), "lora", delta.states()[0], {**use, **own})
    config = replace(config, tune_method="lora", **use)
    folders = [("bad", "good"), ("good", "bad")] if measure.needs_target else [("bad", "good")]
    for sources, tuned in folders:
        paths = {"source_ckpt_path": str(tmp_path / sources), "random_tuned_ckpt_path": str(tmp_path / tuned)}
        with pytest.raises(UserError, match=rf"bad.*checkpoint-best\.pt was tuned {said}"):
            run(measure, flags_of(measure.config, config, **paths))


def test_the_seed_counts_where_it_is_used(config, monkeypatch):
    """Of GraNd, which has dropout; the other measures have no such flag."""
    fields_of = {field.name: getattr(config, field.name) for field in fields(config)}
    grand = get_GraNd.GraNdConfig(**fields_of)
    run(get_GraNd.MEASURE, grand)
    first = read_record(Path(config.output_dir) / "config.json")["settings"]
    assert first["seed"] == 42 and first["bsz_list"] == [8] and "train_iters" not in first
    assert not {"quiet", "stack", "output_dir", "model", "lora_r", "learning_rate_list"} & first.keys()


def test_two_at_once(config):
    with hold(Path(config.output_dir)), pytest.raises(UserError, match=r"Loss is in use by process \d+"):
        loss(config)


@pytest.mark.parametrize("method", ["pemt", "pemt_source", "model"])
def test_deltas_that_cannot_be_stacked_are_refused(config, method):
    with pytest.raises(UserError, match=f"--tune_method {method}: similarities are of adapter"):
        loss(config, tune_method=method)
