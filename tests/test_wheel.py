"""The wheel: what setup.py puts beside the package, and that an installed package finds it. Nothing is built."""

import subprocess
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

import setup as build
from pewe import cli
from pewe.cli import EMBEDDED, embedded
from pewe.errors import OPENDELTA


def committed(*folders: str) -> set[str]:
    """The committed files of these folders; skips where there is no repository."""
    found = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout:
        pytest.skip("no repository")
    return set(found.stdout.splitlines())


def test_the_tree_of_a_wheel_is_what_runs():
    """Every committed program and every embedded default; of data and weights nothing that is not committed."""
    tree = {str(path.relative_to(ROOT)) for pattern in build.TREE for path in ROOT.glob(pattern)}
    wanted = committed(
        "*.py", "data", "checkpoints", "get_similarity", "unit_model", "scripts/suites", "scripts/fusion"
    )
    apart = {"setup.py", "data/mini_gym/README.md", "data/mini_emotions/README.md"}
    wanted = {
        name for name in wanted if name.split("/")[0] not in ("pewe", "tests", "benchmarks") and ".sh" not in name
    }
    assert tree == wanted - apart
    assert all(any(name == path or name.startswith(f"{path}/") for name in tree) for path in EMBEDDED)


def test_an_installed_package_finds_its_defaults_where_the_working_folder_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert embedded("data/mini_gym") == "data/mini_gym"  # a checkout
    monkeypatch.setattr(cli, "INSTALLED", True)
    assert embedded("data/mini_gym") == str(ROOT / "data" / "mini_gym")
    assert embedded(["checkpoints/mini_t5", "checkpoints/mine"]) == [
        str(ROOT / "checkpoints/mini_t5"),
        "checkpoints/mine",
    ]
    for own in ("checkpoints", "data", "data/mini_gym2", 3, 0.5, True, ""):
        assert embedded(own) is own
    (tmp_path / "data" / "mini_gym").mkdir(parents=True)
    assert embedded("data/mini_gym") == "data/mini_gym"


def test_what_a_wheel_cannot_ask_for_is_named_as_it_is_pinned():
    assert (ROOT / "requirements-no-deps.txt").read_text().splitlines()[1:] == [OPENDELTA]


def test_a_wheel_admits_both_versions_of_transformers_that_are_tested(monkeypatch):
    """What requirements.txt pins, and what requirements-transformers4.txt has instead."""
    monkeypatch.chdir(ROOT)
    asked = [Requirement(line) for line in build.dependencies()]
    pins = {name: build.pins(ROOT / f"requirements{name}.txt") for name in ("", "-transformers4")}
    assert {one.name for one in asked} == pins[""].keys() > pins["-transformers4"].keys() > {"transformers"}
    for version in ({}, pins["-transformers4"]):
        assert all(one.specifier.contains((pins[""] | version)[one.name]) for one in asked)
    assert not any(one.specifier.contains("999") for one in asked)


@pytest.mark.slow
def test_a_built_wheel_runs_in_an_empty_folder(tmp_path):
    """Built, unpacked and asked for a plan."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"
    for name in committed("."):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(wheel, check=True, capture_output=True)
    install = [*pip, "install", "--no-deps", "--target", tmp_path / "site", *tmp_path.glob("*.whl")]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    run = [
        "-c",
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from pewe.__main__ import main; main()",
        tmp_path / "site",
    ]
    plan = ["reproduce", "--suite", "mini", "--delta", "adapter", "--seeds", "42", "--init", "Loss", "--dry_run"]
    done = subprocess.run(
        [sys.executable, "-I", *run, *plan], cwd=tmp_path / "empty", capture_output=True, text=True, check=False
    )
    assert "to do   mini/adapter/seed_42/similarity/Loss" in done.stdout, done.stderr
