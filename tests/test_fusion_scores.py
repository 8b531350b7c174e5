"""The scores and tables that an experiment of fusion has stored are those of what its record says, or are made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_fusion import small_domains, small_encoder, small_experiment

from pewe.errors import UserError
from pewe.files import read_json, read_record, write_record
from pewe.fusion import __main__ as merge
from pewe.fusion import experiment, tables
from pewe.fusion.zoo import NAMES, Zoo, renamed
from pewe.identity import file_digest
from pewe.merging import collect
from pewe.merging.store import model_tensors
from pewe.model_files import check_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the zoo and the tables of a finished experiment, and its settings."""
    place = tmp_path_factory.mktemp("world")
    parts = small_encoder(tmp_path_factory.mktemp("encoder")), small_domains(tmp_path_factory.mktemp("domains"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        config = small_experiment(
            *parts, "zoo", seeds=[1], updates=2, methods=["individual", "simple", "soft_ensemble"]
        )
        experiment.run(config)
    return place, config


@pytest.fixture
def config(world, tmp_path, monkeypatch):
    """The same in a copy of that folder, which is the current one."""
    shutil.copytree(world[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return world[1]


OUT = Path("results/tiny")


def written() -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in OUT.iterdir() if path.name in tables.FILES and path.suffix != ".png"
    }


def test_the_record_is_of_the_tables_beside_it(config):
    digests = read_json(OUT / "config.json")["settings"]["tables"]
    assert digests == {name: file_digest(OUT / name) for name in tables.FILES}


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("last", ["scores.tsv", "table.md"])
def test_killed_between_two_tables_nothing_of_another_experiment_is_left(config, monkeypatch, last):
    """Neither a table nor the record of it stands beside those of other settings; the same command then ends as a clean run."""
    before, other = written(), replace(config, methods=["individual", "simple"])

    def write_or_die(path: Path, content, write) -> None:
        write(path, content)
        if path.name == last:
            raise Killed

    with monkeypatch.context() as patch:
        for name in ("write_table", "write_text"):
            own = getattr(tables, name)
            patch.setattr(tables, name, lambda path, content, own=own: write_or_die(path, content, own))
        with pytest.raises(Killed):
            experiment.run(other)
    assert not (OUT / "config.json").exists()
    left = written()
    assert last in left and all(content != before[name] for name, content in left.items())
    experiment.run(config)
    assert written() == before


@pytest.mark.parametrize("source", ["recipe.json", "another cell", "no scores"])
def test_a_sound_record_of_something_else_is_not_read_as_scores(config, source):
    before, paths = written(), sorted(Path("zoo/scores").glob("*.json"))
    content = {
        "recipe.json": read_record(next(Path("zoo").glob("*/recipe.json"))),
        "another cell": read_record(paths[1]),
        "no scores": {"settings": read_record(paths[0])["settings"]},
    }[source]
    write_record(paths[0], content)
    experiment.run(config)
    assert written() == before


def test_a_sound_record_of_something_else_is_not_read_as_a_recipe(config):
    before, path = written(), next(Path("zoo").glob("*/recipe.json"))
    write_record(path, read_record(next(Path("zoo/scores").glob("*.json"))))
    experiment.run(config)
    assert written() == before and read_record(path)["files"]


def test_the_order_of_joint_training_counts_where_the_name_of_the_folder_is_cut(config, tmp_path):
    long = {name: name * (NAMES // 2) for name in "abc"}
    for name, new in long.items():
        shutil.copytree(Path(config.data_dir) / name, tmp_path / "data" / new)
        for path in (tmp_path / "data" / new).iterdir():
            path.rename(path.with_name(path.name.replace(name, new, 1)))
    a, b, c = long.values()
    zoo = Zoo(replace(config, data_dir=str(tmp_path / "data"), domains=[a, b], held_out=[c]), [a, b, c])
    one, other = zoo.folder((a, b, c), 1, 1), zoo.folder((a, c, b), 1, 1)
    assert one != other and "order" not in zoo.recipe((a,), 1, 1)
    assert zoo.folder((a, b, c), 1, 1) == one


def test_a_merge_leaves_no_tokenizer_of_another_model_beside_it(config, tmp_path):
    models = [str(path.parent) for path in sorted(Path("zoo").glob("*/model.safetensors"))[:2]]
    about = merge.Config(models=models, method="simple", output=str(tmp_path / "M"))
    merge.run(about)
    merge.run(about)
    (tmp_path / "M" / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match=r"M holds added_tokens\.json, which zoo/.* has not; give another folder"):
        merge.run(about)


@pytest.mark.parametrize("pairs", [["glad=sad", "glad=angry"], ["glad="], ["=sad"], ["glad"]])
def test_a_label_has_one_name(pairs):
    with pytest.raises(UserError, match="--rename "):
        renamed(pairs)


def test_a_renaming_may_be_named_twice():
    assert renamed(["glad=sad", "glad=sad", "mad=angry"]) == {"glad": "sad", "mad": "angry"}


def test_statistics_are_not_written_over_the_data(config, tmp_path):
    model, data = next(Path("zoo").glob("*/model.safetensors")).parent, tmp_path / "data.tsv"
    for path in Path(config.model).glob("*okeni*"):
        shutil.copy(path, model)
    data.write_text("we saw glad\tglad\n")
    for output in (data, model / "config.json"):
        before = output.read_bytes()
        with pytest.raises(UserError, match=r"--output .* must end in \.safetensors"):
            collect.run(collect.Config(model=str(model), data=str(data), output=str(output)))
        assert output.read_bytes() == before


@pytest.mark.parametrize("name", [5, None, "../other/model.safetensors", "/etc/passwd", ""])
def test_an_index_of_weights_names_files_of_its_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for read in (model_tensors, lambda folder: check_folder(str(folder))):
        with pytest.raises(UserError, match=r"index\.json: weight_map must name files of the folder"):
            read(tmp_path)
