"""Report and tables from stored files of any shape: nothing of them becomes markup or a path, what is wrong is named."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from pewe.cli import main
from pewe.errors import UserError
from pewe.files import write_config, write_record, write_table
from pewe.reporting import page as report
from pewe.reporting import pictures as drawn_by
from pewe.reporting import plots, stored, tables
from pewe.reporting.compared import p_text
from pewe.reporting.tables import best_by_dev, escaped, markdown
from pewe.tuning import gates
from pewe.tuning.config import TuneConfig

STORED = ROOT / "results" / "reference" / "flan_t5_small"
TEST = pd.read_csv(STORED / "cells.tsv", sep="\t", dtype=str)["test"][0]  # in line 2


@pytest.fixture
def folder(tmp_path):
    """A copy of a stored experiment."""
    return shutil.copytree(STORED, tmp_path / "experiment")


def edit(path, old: str, new: str, times: int = -1) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, times), encoding="utf-8")


BAD = {
    "empty": (lambda f: (f / "cells.tsv").write_text(""), r"cells\.tsv: column 'delta' is missing"),
    "header only": (
        lambda f: (f / "cells.tsv").write_text("\t".join(itertools.chain(*stored.COLUMNS["cells"])) + "\n"),
        r"cells\.tsv has no rows",
    ),
    "no column": (lambda f: edit(f / "cells.tsv", "test", "tst"), r"cells\.tsv: column 'test' is missing"),
    "text for a number": (
        lambda f: edit(f / "weights.tsv", "\t0.", "\tzero."),
        r"weights\.tsv, line \d+: weight must be a number",
    ),
    "text for a seed": (
        lambda f: edit(f / "cells.tsv", "\t42\t", "\tfour\t"),
        r"line 2: seed must be a number, not 'four'",
    ),
    "unknown init": (lambda f: edit(f / "cells.tsv", "\tLoss\t", "\t<script>\t"), r"init cannot be '<script>'"),
    "unknown task": (lambda f: edit(f / "cells.tsv", "boolq", "<script>"), r"task cannot be '<script>"),
    "unknown source": (
        lambda f: edit(f / "similarities.tsv", "boolq", "boolk"),
        r"cannot be 'boolk'; did you mean 'boolq'",
    ),
    "delta above": (
        lambda f: edit(f / "cells.tsv", "adapter\t", "../../../x\t"),
        r"delta must be a plain name without slashes",
    ),
    "empty score": (
        lambda f: edit(f / "cells.tsv", f"\t{TEST}\t", "\t\t", 1),
        r"cells\.tsv, line 2: test must be a number, not ''",
    ),
    "score that is not defined": (
        lambda f: edit(f / "cells.tsv", f"\t{TEST}\t", "\tnan\t", 1),
        r"cells\.tsv, line 2: test must be a number, not 'nan'",
    ),
    "empty weight": (
        lambda f: (f / "weights.tsv").write_text((f / "weights.tsv").read_text().rstrip().rpartition("\t")[0] + "\t\n"),
        r"weights\.tsv, line \d+: weight must be a number, not ''",
    ),
    "short row": (
        lambda f: (f / "curves.tsv").open("a").write("adapter\n"),
        r"curves\.tsv, line \d+: 1 cells, expected",
    ),
    "no folder": (shutil.rmtree, "make it with scripts/reproduce.sh"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_is_not_of_its_kind_is_named(name, folder):
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        report.write(folder)
    assert not (folder.parent / "x").exists()


@pytest.mark.parametrize("about", ["[]", json.dumps({"title": "<script>alert(1)</script>", "x": "</pre>"})])
def test_provenance_of_any_shape(about, folder):
    (folder / "provenance.json").write_text(about)
    report.write(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "<script>alert" not in page and page.count("</pre>") == page.count("<pre")
    assert "&lt;script&gt;" in page if "script" in about else "<h1>experiment</h1>" in page


def test_a_stored_report_is_made_again_to_the_byte(folder):
    report.write(folder)
    for path in sorted(STORED.iterdir()):
        if path.suffix in (".md", ".csv", ".tex", ".txt", ".tsv"):
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_every_picture_and_what_it_shows(folder, monkeypatch):
    drawn = {}
    for name in ("lines", "heat_map"):
        monkeypatch.setattr(drawn_by, name, lambda frame, path, *_, **about: drawn.update({path.stem: (frame, about)}))
    monkeypatch.setattr(drawn_by, "score_bars", lambda *about: drawn.update(scores=about))
    found = stored.read_stored(folder)
    sections, first = {}, []
    for picture in report.pictures(found, folder / "pictures"):
        sections.setdefault(picture.section, []).append(picture.path.stem)
        first += [picture.path.stem] * picture.first
    assert sections == {
        "Mean scores": ["scores_adapter"],
        "Learning curves": ["curves_adapter"],
        "Weights": [f"weights_adapter_{init}" for init in found.weights["init"].unique()],
        "Similarities": [f"similarities_adapter_{init}" for init in found.similarities["init"].unique()],
    }
    means = stored.score_table(found.cells, "adapter")[0]["mean"]
    best = means.drop(["Random", "Average", stored.SOURCES]).idxmax()
    assert first == ["scores_adapter", "curves_adapter", f"weights_adapter_{best}", f"similarities_adapter_{best}"]
    bars, _, _, _, marked, goal, _ = drawn["scores"]
    assert bars.to_dict() == means.drop(stored.SOURCES).to_dict() and goal == means[stored.SOURCES]
    assert list(bars.index[:2]) == list(marked) == ["Random", "Average"]
    assert (
        not drawn["similarities_adapter_Loss"][1]["higher"]
        and "lower is more similar" in drawn["similarities_adapter_Loss"][1]["scale"]
    )
    curves, frame = found.curves, drawn["curves_adapter"][0]
    assert stored.SOURCES not in frame and {"Random", "Average", best} <= set(frame) <= {*curves["init"]}
    for init, column in frame.items():
        for updates, shown in column.dropna().items():
            own = curves[(curves["init"] == init) & (curves["updates"] == updates)]["dev"]
            assert shown == pytest.approx(sum(own) / len(own))
    weights = found.weights.set_index(["init", "target", "source"])["weight"]
    for target, row in drawn["weights_adapter_Loss"][0].iterrows():
        assert all(shown == weights["Loss", target, source] for source, shown in row.dropna().items())


def test_what_would_be_markup_in_a_markdown_table_is_not():
    frame = pd.DataFrame({"a|b": ["**0.5**", "x | y"], "<b>": ["1 ± 2", "a\nb"]}, index=["a\\", "R&D"])
    assert markdown(frame, "init").splitlines() == [
        r"| init | a\|b | &lt;b&gt; |",
        "| --- | ---: | ---: |",
        r"| a\\ | **0.5** | 1 ± 2 |",
        r"| R&amp;D | x \| y | a b |",
    ]
    assert escaped(0.25) == "0.25" and escaped("mini_read_towns") == "mini_read_towns"


def test_what_the_rows_cost_stands_on_the_page(folder, monkeypatch):
    """The mean over seeds; a cost that is not known is a dash."""
    monkeypatch.setattr(report, "pictures", lambda *_: [])
    rows = [("adapter", "Loss", seed, "init", 100 * seed, 0, 3.0) for seed in (1, 2)]
    rows += [("adapter", "Random", 1, "tuning", 40, 8, 1.6)]
    columns = ["delta", "init", "seed", "part", "lines", "updates", "seconds"]
    write_table(folder / "costs.tsv", pd.DataFrame(rows, columns=columns))
    report.write(folder)
    assert "| Loss | adapter | 150 | 0 | 3 | – | – | – |" in (folder / "costs.md").read_text()
    assert "<h2>Cost of each row</h2>" in (folder / "report.html").read_text()


def test_an_experiment_of_sources_alone(folder):
    """As after `--init PEMT` without the delta pemt."""
    for path in folder.glob("*.tsv"):
        path.unlink()
    cells = pd.read_csv(STORED / "cells.tsv", sep="\t")
    cells[cells["init"] == stored.SOURCES].to_csv(folder / "cells.tsv", sep="\t", index=False)
    report.write(folder)
    assert "| Full data |" in (folder / "table.md").read_text()


def test_an_undefined_dev_score_is_never_the_best(tmp_path):
    rows = [("a", 0.2, 0.5), ("a", float("nan"), 0.9), ("b", float("nan"), 0.7), ("a", 0.1, 0.1)]
    table = pd.DataFrame(rows, columns=["task", "dev", "test"])
    assert best_by_dev(table, ["task"])["test"].tolist() == [0.5, 0.7]


@pytest.mark.parametrize(
    ("rows", "message"), [(["A=x", "A=y"], "two rows the same name"), (["A=x", "A=x"], "names 'A=x' twice")]
)
def test_two_rows_of_one_name_are_refused(rows, message, capsys):
    with pytest.raises(SystemExit):
        main(tables.run, tables.TableConfig, args=["--rows", *rows])
    assert message in capsys.readouterr().err


def test_the_page_is_sound_html_and_says_no_nan(folder):
    html5lib = pytest.importorskip("html5lib")
    report.write(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)  # raises for the first fault
    body = text[text.index("<body>") : text.index("<script>")]
    assert ">nan<" not in body and "e-0" not in body.split("<h2>Provenance")[0].replace("data:image", "")
    assert body.index("<img") < body.index("<h2>")  # the first picture stands above all tables


def test_cells_of_other_lines_are_not_compared(folder):
    cells = pd.read_csv(folder / "cells.tsv", sep="\t")
    for split in ("test", "train"):
        lines = np.where(cells["init"] == "Loss", "0b", "0a")  # as other than those of Random
        write_table(folder / "cells.tsv", cells.assign(**{f"{split}_lines": lines}))
        with pytest.raises(
            UserError, match=rf"the {split} lines of adapter Loss 42 \S+ are not those of adapter Random 42"
        ):
            report.write(folder)
    lines = np.where(cells["init"] == stored.SOURCES, "0b", "0a")  # these learn from all lines
    write_table(folder / "cells.tsv", cells.assign(train_lines=lines))
    stored.read_stored(folder)


def test_seeds_are_counted_that_have_all_tasks():
    rows = [("adapter", "Loss", seed, task, "p", 0.5, 0.1 * seed) for seed in (1, 2, 3) for task in ("boolq", "liar")]
    cells = pd.DataFrame(rows[:-1], columns=["delta", "init", "seed", "task", "prefix", "dev", "test"])
    means, spread = stored.score_table(cells, "adapter")
    assert spread["Loss"] == "0.071 (2)" and means["mean"]["Loss"] == pytest.approx(0.15)
    assert drawn_by.score_deviations(cells, "adapter")["Loss"] == pytest.approx(0.0707, abs=1e-4)


def tuned(folder, test: dict[str, float], lines: str = "0a", prefix: str = "p", full: bool = False, split="test"):
    """A folder of finished runs with these test scores; those of boolq had these lines."""
    rows = []
    for task, score in test.items():
        run, data = f"{task}/{prefix}/lr", dict.fromkeys(("train", "dev", "test"), "0c")
        settings = {"data": {**data, split: lines} if task == "boolq" else data, "prefix": prefix, "full_train": full}
        write_record(folder / run / "run.json", {"settings": settings, "result": {"dev": 0.5, "test": score}})
        rows.append((task, prefix, 0.5, score, run))
    write_table(folder / "result.tsv", pd.DataFrame(rows, columns=["task", "prefix", "dev", "test", "run"]))
    return folder


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_runs_of_other_lines_have_no_table(split, tmp_path):
    scores = {"liar": 0.25, "boolq": 0.5}
    rows = {name: tuned(tmp_path / name, scores, lines, split=split) for name, lines in (("A", "0a"), ("B", "0b"))}
    wrong = (
        rf"^boolq.*: the {split} lines of B \({tmp_path}/B/boolq/p/lr\) are not those of A \({tmp_path}/A/boolq/p/lr\)"
    )
    with pytest.raises(UserError, match=wrong):
        tables.init_table(rows)
    tuned(tmp_path / "B", scores, "0a", split=split)
    assert tables.init_table(rows)["mean"].tolist() == [0.375, 0.375]


def test_sources_learn_from_all_lines_and_another_sample_has_other_ones(tmp_path):
    few, full = (
        tuned(tmp_path / "few", {"boolq": 0.5}),
        tuned(tmp_path / "full", {"boolq": 0.75}, "0b", full=True, split="train"),
    )
    tuned(tmp_path / "few", {"boolq": 0.5}, "0c", split="test")
    assert tables.init_table({"few": few, "full": full})["boolq"].to_dict() == {"few": 0.5, "full": 0.75}
    for split in ("train", "dev"):
        other = tuned(tmp_path / split, {"boolq": 0.25}, "0d", prefix="q", split=split)
        assert tables.init_table({"few": few, "other": other})["boolq"].to_dict() == {"few": 0.5, "other": 0.25}
    other = tuned(tmp_path / "test", {"boolq": 0.25}, "0d", prefix="q")
    with pytest.raises(UserError, match=r"^boolq: the test lines of other"):
        tables.init_table({"few": few, "other": other})


def test_a_table_without_records_is_taken_as_it_is(tmp_path):
    for name, score in (("A", 0.5), ("B", 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.tsv").write_text(f"task\tdev\ttest\nboolq\t0.1\t{score}\nliar\t0.1\t{score}\n")
    frame = tables.init_table({"B": tmp_path / "B", "A": tmp_path / "A"})
    assert frame.index.tolist() == ["B", "A"] and frame.columns.tolist() == ["boolq", "liar", "mean"]
    (tmp_path / "B/result.tsv").write_text("task\tdev\ttest\nboolq\t0.1\t0.25\nliar\t0.1\t\n")
    with pytest.raises(UserError, match=r"B/result\.tsv, line 3: test must be a number, not ''"):
        tables.init_table({"A": tmp_path / "A", "B": tmp_path / "B"})


def test_the_settings_of_another_command_are_not_replaced(tmp_path):
    runs = tuned(tmp_path / "runs", {"boolq": 0.5})
    write_config(runs, TuneConfig())
    before = (runs / "config.json").read_bytes()
    for out in (runs, tmp_path / "fresh"):
        config = tables.TableConfig(rows=[f"A={runs}"], out=str(out))
        if out == runs:
            with pytest.raises(UserError, match=r"--out .*runs has the config\.json of something else"):
                tables.run(config)
            continue
        tables.run(config)
        tables.run(replace(config, value="dev"))  # its own may be
    assert (runs / "config.json").read_bytes() == before and not (runs / "table.tsv").exists()
    with pytest.raises(UserError, match=r"--out .*runs has the config\.json of something else"):
        gates.run(gates.GatesConfig(out=str(runs)))
    with pytest.raises(UserError, match=r"--out .*lr is the folder of a run, whose gates\.tsv would be lost"):
        gates.run(gates.GatesConfig(out=str(runs / "boolq/p/lr")))


def test_no_table_of_before_stays_beside_the_report(folder, monkeypatch):
    monkeypatch.setattr(report, "pictures", lambda *_: [])
    for name in ("costs.md", "trace.md", "modules.md"):
        (folder / name).write_text("of before")
    (folder / "weights.tsv").unlink()
    report.write(folder)
    assert not {"costs.md", "trace.md", "modules.md", "own_group.md"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("p", "alone", "in_words"),
    [
        (1e-9, "< 0.001", ", p < 0.001"),
        (0.00099, "< 0.001", ", p < 0.001"),
        (0.0314, "0.031", ", p = 0.031"),
        (float("nan"), "–", ""),
    ],
)
def test_p_values_as_they_are_written(p, alone, in_words):
    assert p_text(p) == alone and p_text(p, ", p = ") == in_words


def test_rows_without_any_number_are_left_out():
    frame = pd.DataFrame({"a": [1.0, None], "b": [None, None]}, index=["x", "y"])
    assert report.without_nan(frame).to_dict() == {"a": {"x": 1.0}}


def test_groups_are_parted_and_a_brighter_colour_is_always_more(tmp_path, monkeypatch):
    tasks = ["mini_read_towns", "mini_read_people", "mini_yesno_towns", "boolq"]
    assert plots.separators(tasks) == [2, 3] and plots.separators(["a", "b"]) == []
    frame = pd.DataFrame([[0.1, 0.9], [0.2, 0.3]], index=tasks[1:3], columns=tasks[1:3])
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, path, **_: kept.append(figure))
    for higher in (True, False):
        plots.heat_map(frame, tmp_path / "x.png", "t", higher=higher)
    for figure, brightest in zip(kept, (0.9, 0.1), strict=True):
        mesh = figure.axes[0].collections[0]
        light = {value: sum(mesh.cmap(mesh.norm(value))[:3]) for value in (0.1, 0.9)}
        assert max(light, key=light.get) == brightest
        assert len(figure.axes[0].lines) == 2  # one across, one down
        plots.drawing()[0].close(figure)


def test_a_legend_stands_below_what_is_written_at_the_axis(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, path, **_: kept.append(figure))
    frame = pd.DataFrame({f"a row with a long name {n}": [0.1, 0.2] for n in range(9)}, index=[0, 10])
    plots.lines(frame, tmp_path / "x.png", "t", "updates", "score", bands=frame / 10)
    figure = kept[0]
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    legend, label = axes.get_legend().get_window_extent(renderer), axes.xaxis.label.get_window_extent(renderer)
    assert legend.y1 <= label.y0 and len(axes.collections) == 9
    plots.drawing()[0].close(figure)
