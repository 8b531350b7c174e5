"""Suite files: every mistake is named with its file, section and key, before anything is computed."""

import pytest

from pewe.cli import read_toml
from pewe.errors import UserError
from pewe.grid.config import Config
from pewe.grid.experiment import grids
from pewe.grid.suite import FOLDER, read_suite

SOUND = {
    "all": 'model = "checkpoints/mini_t5"\ntask_dir = "data/mini_gym"\ntask_list = "mini_task_list"',
    "tuning": "stack = 3\nbsz_list = [4]\nlearning_rate_list = [1e-2]\ntrain_iters = 2",
    "weights": "effective = 1.5",
    "delta.adapter": "adapter_size = 4\ntargets = { train_iters = 3 }",
}


def text(top: str = "", **sections: str | None) -> str:
    """The sound suite with other sections (`delta__adapter` is [delta.adapter]; None: without it)."""
    content = SOUND | {name.replace("__", "."): body for name, body in sections.items()}
    return top + "\n" + "\n".join(f"[{name}]\n{body}" for name, body in content.items() if body is not None)


def tuning(line: str) -> str:
    """The sound suite with one more line in [tuning], in the place of the line with the same key."""
    lines = [old for old in SOUND["tuning"].split("\n") if old.split()[0] != line.split()[0]]
    return text(tuning="\n".join([*lines, line]))


BAD = [
    (tuning('stack = "3"'), r"\[tuning\]: stack must be int, not '3'"),
    (tuning("stack = -1"), r"\[tuning\]: stack must be at least 0, not -1"),
    (tuning("stack = { a = 1 }"), r"\[tuning\]: stack must be int, not"),
    (tuning("train_iters = 2.5"), "train_iters must be int, not 2.5"),
    (tuning("train_iters = true"), "train_iters must be int, not True"),
    (tuning("train_iters = 2020-01-01"), "train_iters must be int, not datetime"),
    (tuning("train_iters = -2"), "train_iters must be at least 1, not -2"),
    (tuning("bsz_list = 4"), "bsz_list must be a list of int, not 4"),
    (tuning('bsz_list = ["4"]'), "bsz_list must be a list of int"),
    (tuning("bsz_list = []"), "bsz_list must not be empty"),
    (tuning("learning_rate_list = []"), "learning_rate_list must not be empty"),
    (tuning("learning_rate_list = [5e-4, 0.0005]"), "learning_rate_list names '0.0005' twice"),
    (tuning("learning_rate_list = [inf]"), "learning_rate_list must be a finite number"),
    (tuning("stak = 3"), r"\[tuning\]: unknown flag 'stak'; did you mean 'stack'"),
    (tuning("effective = 2.0"), r"\[tuning\]: unknown flag 'effective'"),
    (tuning('output_dir = "/tmp/x"'), r"\[tuning\]: output_dir cannot be set in a suite"),
    (tuning("seed = 9"), r"\[tuning\]: seed cannot be set in a suite"),
    (text(all="model = 5"), r"\[all\]: model must be str, not 5"),
    (text(all='device = "gpu"'), r"\[all\]: device cannot be 'gpu'"),
    (text(all='task_list = "nope"'), r"\[all\]: task_list cannot be 'nope'"),
    (text(all='tasks = "mini_read_towns"'), r"\[all\]: tasks must be a list of str"),
    (text(weights='effective = "x"'), r"\[weights\]: effective must be float, not 'x'"),
    (text(weights="effective = nan"), r"\[weights\]: effective must be a finite number"),
    (text(weights="effective = -3"), r"\[weights\]: effective must be at least 0"),
    (text(delta__adapter=None), r"a section \[delta.NAME\] is needed"),
    (text(delta__adaptor=""), "unknown delta 'adaptor'; did you mean 'adapter'"),
    (text(delta__adapter="adapter_size = 0"), r"\[delta.adapter\]: adapter_size must be at least 1"),
    (text(delta__adapter="sources = [1]"), r"delta.adapter.sources must be a section"),
    (
        text(delta__adapter="sources = { train_iters = 0 }"),
        r"\[delta.adapter.sources\]: train_iters must be at least 1",
    ),
    (text(delta__adapter="sorces = { train_iters = 1 }"), r"\[delta.adapter\]: unknown flag 'sorces'"),
    (text('delta = "adapter"', delta__adapter=None), r"delta must be a section \[delta\] of flags, not 'adapter'"),
    (text("delta = { adapter = 5 }", delta__adapter=None), r"delta.adapter must be a section"),
    (text(tunning="stack = 1"), "unknown section 'tunning'; did you mean 'tuning'"),
    (text("stack = 3"), "unknown key 'stack'"),
    (text("sources = 5"), r"sources must be a section \[sources\] of flags, not 5"),
    (text("title = 5"), "title must be str, not 5"),
    (text("base = 5"), "base must be str, not 5"),
    (text('base = "s.toml"'), "base = 's.toml' leads back to this file"),
    (text('base = "nope.toml"'), "base: there is no file .*nope.toml"),
    (text('base = "."'), "base: there is no file"),
    (tuning("stack = 2\nstack = 2"), "line"),
    (text(row__Unoin="union_lines = 5"), "unknown row 'Unoin'; did you mean 'Union'"),
    (text(row__Union="union_line = 5"), r"\[row.Union\]: unknown flag 'union_line'; did you mean 'union_lines'"),
    (text(row__Union="union_lines = 0"), r"\[row.Union\]: union_lines must be at least 1"),
    (text(row__Best_source="top_k = 2"), r"\[row.Best_source\]: top_k cannot be set, it is what makes this row"),
    (text(row__GraNd_block='mode = "layer"'), r"\[row.GraNd_block\]: mode cannot be set"),
    (text(row__Union="seed = 2"), r"\[row.Union\]: seed cannot be set in a suite"),
    (text("row = 5"), r"row must be a section \[row\] of flags, not 5"),
    (text("row.Union = 5"), r"row.Union must be a section"),
    (text() + '\n[row."Loss+tise"]\n', r"\[row.Loss\+tise\]: its combiner cannot be 'tise'; did you mean 'ties'"),
    ("", r"a section \[delta.NAME\] is needed"),
    ("a = " + "[" * 5000, "s.toml: "),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[message for _, message in BAD])
def test_a_mistake_is_named(content, message, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_suite(str(path))
    assert "s.toml" in str(error.value) and "\n" not in str(error.value)


def test_a_loop_of_three_and_a_mistake_in_the_base_name_that_file(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.toml").write_text(f'base = "{base}.toml"\n')
    with pytest.raises(UserError, match=r"a\.toml: base = 'a\.toml' leads back"):
        read_suite(str(tmp_path / "a.toml"))
    (tmp_path / "c.toml").write_text("[tuning]\nstack = -1\n")
    with pytest.raises(UserError, match=r"c\.toml, \[tuning\]: stack must be"):
        read_suite(str(tmp_path / "a.toml"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", bytes(range(256))])
def test_what_is_no_text_is_refused(content, tmp_path):
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.toml: "):
        read_suite(str(tmp_path / "s.toml"))


def test_a_byte_order_mark_of_an_editor_is_skipped(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xef\xbb\xbf" + text().encode())
    assert read_suite(str(tmp_path / "s.toml")).deltas == ["adapter"]
    assert "delta" in read_toml(tmp_path / "s.toml")


def test_the_name_of_a_suite_is_a_plain_one(tmp_path):
    (tmp_path / "..toml").write_text(text())
    with pytest.raises(UserError, match="its name must be a plain name"):
        read_suite(str(tmp_path / "..toml"))
    (tmp_path / "méin 2.toml").write_text(text())
    assert read_suite(str(tmp_path / "méin 2.toml")).name == "méin 2"


def test_a_row_has_flags_of_its_own(tmp_path):
    """Of its script and of its measure; NAME+RULE has those of NAME, and its own."""
    rows = {"row__TextEmb": "text_lines = 7\neffective = 2.0", "row__Loss": "tem = 0.5"}
    (tmp_path / "s.toml").write_text(text(**rows) + '\n[row."Loss+ties"]\ncombine_flags = ["density=0.5"]\n')
    suite = read_suite(str(tmp_path / "s.toml"))
    assert suite.of_row("TextEmb") == {"text_lines": 7, "effective": 2.0} and suite.of_row("KL") == {}
    assert suite.of_row("Loss+ties") == {"tem": 0.5, "combine_flags": ["density=0.5"]}
    (grid, *_) = grids(Config(suite=str(tmp_path / "s.toml"), seeds=[1]), suite)
    assert grid.step("similarity", "TextEmb").config.text_lines == 7
    assert grid.step("weights", "TextEmb").config.effective == 2.0
    assert grid.step("weights", "Loss").config.effective == grid.step("weights", "Length").config.effective == 1.5


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_suite_of_the_repository_is_sound(name):
    assert read_suite(name).deltas
