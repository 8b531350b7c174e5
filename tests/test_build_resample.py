"""Further few-shot samples from full training files."""

from pathlib import Path

import pytest

import data.build.resample
from data.build.resample import ResampleConfig, run
from pewe.data import SPLITS, read_examples
from pewe.errors import UserError
from pewe.files import hold

CLASSES = ("yes", "no", "maybe")


def write(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def rows(start: int, stop: int, label: bool) -> list[str]:
    return [f"question {i}\t{CLASSES[i % 3] if label else f'answer {i}'}" for i in range(start, stop)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks: one of three classes, one of text; seed 42 is there already."""
    for task, label in (("classes", True), ("texts", False)):
        stem = tmp_path / "data" / task / task
        write(
            stem.with_name(f"{task}_full_train.tsv"), [*rows(0, 120, label), "question 1000\tyes"]
        )  # a test line, too
        for split, start in zip(SPLITS, (300, 400, 1000), strict=True):
            write(stem.with_name(f"{task}_4_42_{split}.tsv"), rows(start, start + 12, label))
    return tmp_path / "data"


def resampled(folder: Path, out: Path, **flags) -> dict[str, dict[str, list[tuple]]]:
    """task -> file name without task -> lines."""
    run(ResampleConfig(folders=[str(folder)], out=str(out), shots=4, shots_per_class=4, quiet=True, **flags))
    return {
        task.name: {
            path.stem.removeprefix(f"{task.name}_"): [(e.input, *e.outputs) for e in read_examples(path)]
            for path in task.glob("*.tsv")
        }
        for task in out.iterdir()
    }


def test_sizes_and_classes(folder, tmp_path):
    made = resampled(folder, tmp_path / "out", seeds=[1, 2, 42])
    assert {name: len(lines) for name, lines in made["texts"].items()} == {
        **{f"4_{seed}_{split}": 4 for seed in (1, 2) for split in ("train", "dev")},
        **{f"4_{seed}_test": 12 for seed in (1, 2, 42)},
        "4_42_train": 12,
        "4_42_dev": 12,
        "full_train": 120 - 30,
    }
    for split in ("train", "dev"):
        labels = [line[1] for line in made["classes"][f"4_1_{split}"]]
        assert sorted(labels) == sorted([*CLASSES] * 4)


def test_no_train_line_is_anybodys_dev_or_test_line(folder, tmp_path):
    for files in resampled(folder, tmp_path / "out", seeds=[1, 2, 3, 42]).values():
        train = {line for name, lines in files.items() if name.endswith("train") for line in lines}
        held = {line for name, lines in files.items() if name.endswith(("dev", "test")) for line in lines}
        assert not train & held
        assert files["4_1_train"] != files["4_2_train"] and files["4_1_dev"] != files["4_2_dev"]


def test_a_sample_depends_on_its_seed_only(folder, tmp_path):
    some = resampled(folder, tmp_path / "some", seeds=[2])
    more = resampled(folder, tmp_path / "more", seeds=[7, 2, 1])
    for task, files in some.items():
        assert {name: more[task][name] for name in files} == files


def test_the_sample_that_is_there_is_kept(folder, tmp_path):
    made = resampled(folder, tmp_path / "out", seeds=[42])
    assert [line[0] for line in made["texts"]["4_42_train"]] == [f"question {i}" for i in range(300, 312)]
    assert len(list(folder.rglob("*"))) == 2 * 5  # nothing was written there


def test_test_lines(folder, tmp_path):
    fewer = resampled(folder, tmp_path / "fewer", seeds=[1, 2], max_test=5)["texts"]
    assert len(fewer["4_1_test"]) == 5 and fewer["4_1_test"] == fewer["4_2_test"]
    more = resampled(folder, tmp_path / "more", seeds=[1], max_test=20, more_test=True)["texts"]
    assert len(more["4_1_test"]) == 20 and not set(more["4_1_test"]) & set(more["full_train"])
    most = resampled(folder, tmp_path / "most", seeds=[1], max_test=100, more_test=True)["texts"]
    assert len(most["4_1_test"]) == 12 + 120 // 4


def test_a_task_that_cannot_be_resampled_is_named(folder, tmp_path):
    (folder / "texts" / "texts_full_train.tsv").unlink()
    with pytest.raises(UserError, match=r"1 tasks were not resampled:\n  texts: there is no file"):
        resampled(folder, tmp_path / "out")
    assert (tmp_path / "out" / "classes" / "classes_4_46_dev.tsv").is_file()
    with pytest.raises(UserError, match="another folder"):
        resampled(folder / "classes", folder)


def test_nothing_stays_of_an_earlier_call(folder, tmp_path):
    """Its dev lines would be lines of the new full training file."""
    resampled(folder, tmp_path / "out", seeds=[1, 2, 3])
    assert resampled(folder, tmp_path / "out", seeds=[1], max_test=5) == resampled(
        folder, tmp_path / "new", seeds=[1], max_test=5
    )


def test_a_call_that_was_killed_leaves_nothing_either(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        write_file, calls = data.build.resample.write_file, []

        def dying(*args):
            calls.append(1)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return write_file(*args)

        patch.setattr(data.build.resample, "write_file", dying)
        with pytest.raises(KeyboardInterrupt):
            resampled(folder, tmp_path / "out", seeds=[7, 8])
    assert list((tmp_path / "out").rglob("*_7_*.tsv"))
    assert resampled(folder, tmp_path / "out", seeds=[1]) == resampled(folder, tmp_path / "new", seeds=[1])


@pytest.mark.parametrize("shots", [3, 5])
def test_samples_of_unequal_size_are_refused(folder, tmp_path, shots):
    config = ResampleConfig(
        folders=[str(folder)], out=str(tmp_path / "out"), shots=4, shots_per_class=shots, quiet=True, seeds=[1, 42]
    )
    said = rf"classes_4_42_train\.tsv has 4 lines of a class, other seeds would have {shots} \(--shots_per_class\)"
    with pytest.raises(UserError, match=said):
        run(config)


def test_two_at_once(folder, tmp_path):
    with hold(tmp_path / "out" / "texts"), pytest.raises(UserError, match=r"texts: .*texts is in use by process \d+"):
        resampled(folder, tmp_path / "out", seeds=[1])
