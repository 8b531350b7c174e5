"""The Python of the READMEs: the lines run as they stand, and give what the commands give."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, random_state, write_tiny_data
from test_readme import READMES, text_of

from get_similarity import get_Loss
from pewe.deltas.attach import attached
from pewe.deltas.checkpoint import (
    delta_identity,
    ensemble_checkpoint,
    read_checkpoint,
    task_checkpoint,
    write_checkpoint,
)
from pewe.errors import UserError
from pewe.files import read_record
from pewe.identity import state_digest
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.loop import run as similarity
from pewe.tuning.tune import TuneConfig, tune
from unit_model import unit_model_others

FOLDER, TARGET = "checkpoints/quickstart/adapter/seed_42/sources", "mini_closed_people"
SOURCES = ("mini_read_people", "mini_read_towns", "mini_yesno_people")


def lines_of(document: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", text_of(document), re.DOTALL)
    return block


def test_both_readmes_have_the_same_ten_lines():
    code = [lines_of(document) for document in READMES]
    assert code[0] == code[1]
    lines = [line for line in code[0].splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) == 10 and max(map(len, lines)) <= 120


@pytest.fixture
def quickstart(tmp_path, monkeypatch) -> Path:
    """A folder like that of the repository after scripts/quickstart.sh, with few lines and random sources; few updates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pewe.tuning.plan.LIMIT_TRAIN_ITERS", 2)
    write_tiny_data(tmp_path / "data/mini_gym", {TARGET: TARGET})
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / "checkpoints/mini_t5").symlink_to(ROOT / "checkpoints/mini_t5")
    _, delta = attached(SimilarityConfig())
    for name in (*SOURCES, TARGET):
        state = random_state(delta, name, std=0.05)
        write_checkpoint(task_checkpoint(Path(FOLDER), name), "adapter", state, delta_identity(SimilarityConfig()))
    return tmp_path


def test_the_lines_give_what_the_commands_give(quickstart, capsys):
    made: dict = {}
    exec(compile(lines_of("README.md"), "README.md", "exec"), made)
    (score,) = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    about = {"source_ckpt_path": FOLDER, "source_tasks": list(SOURCES), "quiet": True}
    loss = get_Loss.MEASURE
    table = similarity(loss, SimilarityConfig(tasks=[TARGET], output_dir="S", pictures=False, **about))
    assert table["value"].tolist() == made["S"].tolist() and table["value"].nunique() == len(SOURCES)
    unit_model_others.run(unit_model_others.Config(origin_data_path="S", tem=0.1, save_ckpt_path="Loss", **about))
    merged = read_checkpoint(ensemble_checkpoint(Path("Loss"), TARGET), "adapter")
    assert state_digest(merged) == state_digest(made["start"])
    rows = tune(
        TuneConfig(
            tasks=[TARGET],
            do_train=True,
            do_predict=True,
            train_checkpoint="Loss",
            output_dir="from_Loss",
            learning_rate_list=[3e-3],
            quiet=True,
        )
    )
    assert rows["test"].tolist() == [score] and rows["updates"].tolist() == [2]
    runs = [next(Path(out).glob("*/*/*/run.json")) for out in ("from_Loss", made["out"])]
    (start, end), (again, last) = (read_record(path)["result"]["history"] for path in runs)
    assert (end["loss"], end["dev"], end["updates"]) == (last["loss"], last["dev"], 2) and end["loss"] > 0
    assert start["dev"] == again["dev"]


def test_a_state_to_begin_with_takes_the_place_of_the_ensembles(quickstart):
    state = read_checkpoint(task_checkpoint(Path(FOLDER), TARGET), "adapter")
    config = TuneConfig(tasks=[TARGET], do_train=True, output_dir="out", quiet=True)
    with pytest.raises(UserError, match="in place of --train_checkpoint"):
        tune(replace(config, train_checkpoint="Loss"), init=state)
    with pytest.raises(UserError, match="the state to begin with: 1 tensors are missing"):
        tune(config, init=dict(list(state.items())[1:]))


@pytest.mark.slow
def test_the_docstrings_are_rendered_by_the_command_of_contributing(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed (requirements-development.txt)")
    (command,) = re.findall(r"^python -m (pdoc .*?)  +#", text_of("CONTRIBUTING.md"), re.MULTILINE)
    words = [str(tmp_path / word) if word == "site" else word for word in command.split()]
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    page = (tmp_path / "site/pewe/tuning/tune.html").read_text(encoding="utf-8")
    assert "All runs that are not finished yet" in page
    made = {str(path.relative_to(tmp_path / "site").with_suffix("")) for path in (tmp_path / "site").rglob("*.html")}
    modules = {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "pewe").rglob("[a-z]*.py")}
    assert modules <= made
