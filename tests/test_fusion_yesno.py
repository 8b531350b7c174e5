"""Labels as yes / no generation: rows, answers, scores and merges of a tiny random T5 on generated domains."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_t5
from sklearn.metrics import f1_score

from pewe.batches import IGNORED
from pewe.errors import UserError
from pewe.fusion import cells as fusion_cells
from pewe.fusion import experiment
from pewe.fusion.cells import Cell, Config
from pewe.fusion.domains import read_domains
from pewe.fusion.yesno import answer_form, answer_logits
from pewe.fusion.zoo import Zoo
from pewe.tokenizer_files import load_tokenizer

LABELS = {"a": ("glad", "sad"), "b": ("sad", "angry"), "c": ("glad", "angry")}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    tiny_t5(vocab_size=1352).save_pretrained(folder)
    load_tokenizer(str(ROOT / "checkpoints" / "mini_t5")).save_pretrained(folder)
    return folder


@pytest.fixture
def config(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, labels in LABELS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, count in (("train", 8), ("test", 3)):
            lines = [f"we {label} {number}\t{label}\n" for number in range(count) for label in labels]
            (tmp_path / "data" / name / f"{name}_{split}.tsv").write_text("".join(lines))
    return Config(
        kind="yesno",
        model=str(backbone),
        data_dir=str(tmp_path / "data"),
        zoo=str(tmp_path / "zoo"),
        domains=["a", "b"],
        held_out=["c"],
        seeds=[1],
        updates=3,
        batch_size=4,
        learning_rate=1e-2,
        ridge=1e-3,
        name="tiny",
        quiet=True,
    )


def test_rows_ask_for_every_known_label(config, tmp_path, backbone):
    tokenizer, limits = load_tokenizer(str(backbone)), {"train": 0, "test": 0}
    domains, labels = read_domains(tmp_path / "data", ["a", "b"], "yesno", tokenizer, 64, limits, {})
    assert labels == ["angry", "glad", "sad"] and domains["a"].known == {1, 2}
    shown = [tuple(map(tokenizer.decode, row)) for row in domains["a"].train]
    yes = [row for row in shown if row[1] == "<extra_id_0> yes</s>"]
    assert len(yes) == 16 and yes[0][0].startswith("does the sentence express glad?<extra_id_0> we glad 0")
    assert 6 <= len(shown) - len(yes) <= 15  # 16 negatives, each kept with probability sqrt(1 / 2)
    gold = sorted(gold for _, gold in domains["a"].test)
    assert gold == [[-100, -100, 0]] * 3 + [[-100, -100, 1]] * 3 + [[-100, 0, -100]] * 3 + [[-100, 1, -100]] * 3


def test_answers_are_greedy_decoding(backbone):
    """Restricted to yes and no by generate's own means, and free."""
    model, tokenizer = tiny_t5(vocab_size=1352), load_tokenizer(str(backbone))
    form = answer_form(tokenizer)
    assert [tokenizer.decode([token]) for token in (*form.prefix, form.yes, form.no)] == ["<extra_id_0>", "yes", "no"]
    inputs = dict(tokenizer([f"we saw {number} of them" for number in range(40)], padding=True, return_tensors="pt"))
    gold = torch.tensor([[IGNORED, 1]]).repeat(40, 1)

    def generated(**options):
        ids = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, num_beams=1, do_sample=False, **options)
        return (ids[:, 2] == form.yes).tolist()

    def allowed(_, ids):
        return form.prefix if len(ids) == 1 else [form.yes, form.no]

    restricted = answer_logits(model, inputs, gold, form, free=False)
    assert (restricted[:, 1] > 0).tolist() == generated(prefix_allowed_tokens_fn=allowed) and not restricted[:, 0].any()
    model.lm_head.weight.data[form.yes] *= 40  # now yes is often the free answer too
    free = (answer_logits(model, inputs, gold, form, free=True)[:, 1] > 0).tolist()
    assert free == generated() and len(set(free)) == 2


def test_every_method_and_scores_by_definition(config):
    experiment.run(config)
    assert Path("results/tiny/table.md").is_file()
    made, cell = Zoo(config, ["a", "b", "c"]), Cell(("a", "b"), "same", 1, "simple")
    found = {m: experiment.scores(made, config, replace(cell, method=m)) for m in fusion_cells.METHODS}
    folders = [made.folder(*member) for member in cell.members(config.domains)]
    model, domain = experiment.merged(made, config, cell, folders), made.domains["c"]
    logits, gold = made.logits(model, domain), np.array([gold for _, gold in domain.test])
    by_label = [
        f1_score(gold[rows, label], logits.numpy()[rows, label] > 0, zero_division=0)
        for label, rows in enumerate((gold != IGNORED).T)
        if rows.any()
    ]
    assert len(by_label) == 2 and found["simple"]["c"] == pytest.approx(100 * np.mean(by_label))
    stored = torch.stack([made.stored_logits(folder, domain) for folder in folders])
    (soft,) = experiment.answers(
        stored, [frozenset({1, 2}), frozenset({0, 2})], frozenset({0, 1}), "soft_ensemble", config
    )
    assert torch.equal(soft, (stored.mean(0) > 0) & torch.tensor([True, True, False]))
    states = [experiment.merged(made, config, replace(cell, method=m), folders).state_dict() for m in experiment.MERGES]
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert min((x[name] - y[name]).abs().max() for x, y in itertools.pairwise(states)) > 1e-6


def test_a_model_merged_with_itself_is_itself(config):
    made, cell = Zoo(config, ["a", "b", "c"]), Cell(("a", "b"), "same", 1, "simple")
    folder = made.trained(("a",), 1, 1)
    before = made.model(folder).state_dict()
    for method in experiment.MERGES:
        after = experiment.merged(
            made, config, replace(cell, domains=("a", "a"), method=method), [folder] * 2
        ).state_dict()
        assert all(torch.allclose(after[name], before[name], atol=1e-5) for name in before)


def test_training_learns_the_answers(config):
    config = replace(config, updates=250, batch_size=8)
    found = experiment.scores(Zoo(config, ["a", "b", "c"]), config, Cell(("a", "b"), "same", 2, "multitask"))
    assert found["a"] + found["b"] > 2 * 75  # single answers depend on the machine's rounding


def test_free_answers_have_scores_of_their_own(config):
    free = replace(config, as_original=True)
    cell = Cell(("a", "b"), "same", 1, "individual")
    made = [Zoo(c, ["a", "b"]) for c in (config, free)]
    folders = [[own.trained(*member) for member in cell.members(config.domains)] for own in made]
    one, other = (
        experiment.settings(*each, cell, own) for *each, own in zip(made, (config, free), folders, strict=True)
    )
    assert one != other and one["models"] == other["models"]


def test_errors_name_what_does_not_apply(config):
    for changes, message in (
        ({"fisher": "hard"}, "--kind yesno: .* --fisher hard does not apply"),
        ({"heads": ["same", "different"]}, "--heads different does not apply"),
        ({"own_heads": True}, "--own_heads does not apply"),
        ({"layers": 2}, "--layers does not apply"),
        ({"model": str(ROOT / "checkpoints" / "mini_bert")}, "--kind yesno needs a T5; --model .* is a bert"),
        ({"kind": "single"}, r"--kind single needs an encoder, .*--kind yesno\); --model .* is a t5"),
    ):
        with pytest.raises(UserError, match=message):
            experiment.run(replace(config, **changes))
    with pytest.raises(UserError, match="tokenizer writes yes and no alike"):
        answer_form(load_tokenizer(str(ROOT / "checkpoints" / "mini_bert")))
