"""The gate of the sources, by hand."""

from pathlib import Path

import pandas as pd
import pytest

from pewe.data import lines_digest, read_examples
from pewe.errors import UserError
from pewe.reporting import gate

TASKS = ("boolq", "liar")


@pytest.fixture
def data(tmp_path) -> Path:
    """Of boolq "yes" is the most frequent answer in full, "no" in the few-shot file; 3 of 4 test lines are yes."""
    for task in TASKS:
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        for name, answers in (
            ("full_train", "yyyn"),
            ("64_1_train", "nnny"),
            ("64_1_dev", "yn"),
            ("64_1_test", "yyyn"),
        ):
            lines = [f"q{i}\t{ {'y': 'yes', 'n': 'no'}[answer] }" for i, answer in enumerate(answers)]
            (folder / f"{task}_{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def cells(**scores: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """task -> row -> test scores of two seeds, both on the same sample."""
    rows = [
        ("adapter", init, seed, task, f"{task}_64_1", 0.5, test, 1.0)
        for task, inits in scores.items()
        for init, values in inits.items()
        for seed, test in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["delta", "init", "seed", "task", "prefix", "dev", "test", "seconds"])


def test_a_source_must_beat_both(data, tmp_path, capsys):
    table = cells(
        boolq={"Random": (0.6, 0.8), "Full data": (0.8, 0.7)},  # 0.75 is not above the constant answer's 0.75
        liar={"Random": (0.4, 0.5), "Full data": (0.5, 0.48)},
    )
    table.to_csv(tmp_path / "cells.tsv", sep="\t", index=False)
    gate.run(gate.Config(str(tmp_path), str(data)))
    found = pd.read_csv(tmp_path / "gate.tsv", sep="\t").set_index("task")
    assert found["constant answer"].tolist() == ["yes", "yes"] and found["passes"].tolist() == [False, True]
    assert found.loc["boolq", "constant"] == 0.75 and found.loc["boolq", "few-shot"] == pytest.approx(0.7)
    assert found.loc["liar", "constant"] == pytest.approx(3 / 7)  # macro F1: 6/7 of yes, 0 of no
    assert "1 of 2 sources pass" in capsys.readouterr().out
    better = cells(liar={"Random": (0.5, 0.7), "Full data": (0.59, 0.6)})
    assert gate.gate(better, data)["passes"].tolist() == [False]  # below the few-shot runs


def test_seeds_that_lack_the_source_or_the_few_shot_runs_do_not_count(data):
    """Of three seeds one has both: all numbers are of that one, also the test files of the constant answer."""
    table = cells(liar={"Random": (0.4, 0.9), "Full data": (0.5, 0.1)})
    other = (table["seed"] == 1) & (table["init"] == "Random")
    late = table[table["seed"] == 1].replace({"init": {"Random": "Loss"}}).assign(seed=2, prefix="liar_64_7")
    (row,) = gate.gate(pd.concat([table[(table["seed"] == 0) | other], late]), data).to_dict("records")
    assert (row["few-shot"], row["source"], row["passes"]) == (0.4, 0.5, True)


def test_data_of_other_lines_than_the_runs_had_is_refused(data):
    """The constant answer would be that of another task."""
    table = cells(boolq={"Random": (0.6, 0.8), "Full data": (0.8, 0.7)})
    lines = {
        name: lines_digest(read_examples(data / f"boolq/boolq_{name}.tsv")) for name in ("full_train", "64_1_test")
    }
    sources = table["init"] == "Full data"
    told = table.assign(
        test_lines=lines["64_1_test"], train_lines=sources.map({True: lines["full_train"], False: "few"})
    )
    assert gate.gate(told, data).equals(gate.gate(table, data))
    for name, split in (("full_train", "train"), ("64_1_test", "test")):
        path = data / f"boolq/boolq_{name}.tsv"
        text = path.read_text()
        path.write_text(text.replace("q0\tyes", "q0\tno"))
        with pytest.raises(UserError, match=rf"boolq_{name}\.tsv does not have the {split} lines of the runs"):
            gate.gate(told, data)
        path.write_text(text)


def test_what_is_missing_is_named(data):
    with pytest.raises(UserError, match="no row 'Full data', which the gate needs"):
        gate.gate(cells(boolq={"Random": (0.5, 0.5)}), data)
    table = cells(boolq={"Random": (0.5, 0.5), "Full data": (0.5, 0.5)}).assign(prefix="boolq_64_7")
    with pytest.raises(UserError, match=r"boolq has no boolq_64_7_train\.tsv"):
        gate.gate(table, data)
