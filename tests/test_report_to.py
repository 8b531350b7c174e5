"""--report_to: where the curves of a run go."""

import importlib.util
import os
from dataclasses import replace

import pytest
from conftest import MINI_TASKS
from test_train import settings

from pewe.errors import UserError
from pewe.tuning.scalars import Report
from pewe.tuning.tune import tune


def curves_of(folder) -> dict[str, int]:
    """What of each kind lies below a folder of runs."""
    return {name: len(list(folder.glob(f"*/*/*/{name}/**/{kind}"))) for name, kind in KINDS.items()}


KINDS = {"tensorboard": "events*", "wandb": "run-*.wandb"}


def test_none_leaves_no_curves_and_changes_no_result(tiny_backbone, tiny_data, tmp_path):
    config = settings(tiny_backbone, tiny_data, tmp_path / "both", tasks=list(MINI_TASKS[:1]), train_iters=2)
    tables = [
        tune(replace(config, output_dir=str(tmp_path / name), report_to=given)).drop(columns="seconds")
        for name, given in (("none", ["none"]), ("default", config.report_to))
    ]
    assert tables[0].equals(tables[1])
    assert curves_of(tmp_path / "none") == {"tensorboard": 0, "wandb": 0}
    assert curves_of(tmp_path / "default") == {"tensorboard": len(tables[0]), "wandb": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["wandb"], "^--report_to wandb: the package wandb is not installed; pip install wandb$"),
        (["none", "tensorboard"], "--report_to none tensorboard: none stands alone"),
        (["comet"], "--report_to cannot be 'comet'"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(tmp_path, monkeypatch, given, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        tune(settings(tmp_path / "no_model", tmp_path / "no_data", tmp_path / "out", report_to=given))


def test_weights_and_biases_offline(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    """The runs of a stack are runs of it, at the same time; nothing leaves the machine."""
    pytest.importorskip("wandb", reason="wandb is not installed (requirements-development.txt)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = settings(tiny_backbone, tiny_data, tmp_path / "runs", tasks=list(MINI_TASKS[:2]), train_iters=2, stack=2)
    table = tune(replace(config, report_to=["wandb", "tensorboard"]))
    assert curves_of(tmp_path / "runs") == {"tensorboard": len(table), "wandb": len(table)}
    for path in (tmp_path / "runs").glob("*/*/*/wandb/*/run-*.wandb"):
        content = path.read_bytes()
        assert all(name in content for name in (b"train/loss", b"train/gradient_norm", b"dev/", b"update"))


def test_a_run_goes_on_where_weights_and_biases_fails(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (requirements-development.txt)")

    def failing(**about):
        raise wandb.Error("the service is not there")

    monkeypatch.setattr(wandb, "init", failing)
    report = Report(["wandb", "tensorboard"], tmp_path, 0, {"task": "a"})
    report.add_scalar("train/loss", 0.5, 1)
    report.close()
    assert list((tmp_path / "tensorboard").glob("events*")) and "WANDB_MODE" not in os.environ
    assert capsys.readouterr().err.count("the service is not there; the run goes on without") == 1
