"""Building: sampling, disjoint splits, files of every kind, resume, checksums, the hub's two ways, and readable errors."""

import csv
import gzip
import hashlib
import json
import random
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from test_build_rows import ROWS

from data.build import rows as rows_module
from data.build import summary
from data.build.registry import ENTRIES
from data.build.run import BuildConfig, run
from data.build.sample import FewShot, Smallest, in_share, rank
from data.build.task import Settings, Source, build_task
from pewe.cli import ROOT, parse
from pewe.data import Example, read_examples
from pewe.errors import UserError
from pewe.files import hold

SIZES = {"shots": 4, "shots_per_class": 2}


def write_rows(path, rows):
    """Write rows as the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow (requirements-data.txt)")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        pyarrow = pytest.importorskip("pyarrow", reason="Arrow files need pyarrow (requirements-data.txt)")
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            form = {} if path.suffix == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
            writer = csv.DictWriter(file, list(rows[0]), **form)
            writer.writeheader()
            for row in rows:
                nested = {
                    name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in row.items()
                }
                writer.writerow(nested)


def write_source(folder, task, suffix=".jsonl", train=80, test=60):
    """Files of a task's splits in the hub's schema; returns the rows by split."""
    entry, make = ENTRIES[task], ROWS[task][0]
    made = {entry.train: [make(number) for number in range(train)]}
    if entry.test:
        made[entry.test] = [make(1000 + number) for number in range(test)]
    for split, rows in made.items():
        write_rows(folder / task / f"{split}{suffix}", rows)
    return made


def build(folder, out, **changes):
    """Build with small sizes, from files, without talking."""
    run(BuildConfig(**{**SIZES, "from_dir": str(folder), "out": str(out), "quiet": True, **changes}))
    return out


def built(out, task, seed=42, shots=4):
    """The lines of the three splits."""
    stem = out / task / f"{task}_{shots}_{seed}"
    return {split: read_examples(stem.with_name(f"{stem.name}_{split}.tsv")) for split in ("train", "dev", "test")}


def inputs(examples):
    """The set of inputs, which are distinct."""
    texts = [example.input for example in examples]
    assert len(set(texts)) == len(texts)
    return set(texts)


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """All 51 tasks from fixture rows, with full train files."""
    folder, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for task in ENTRIES:
        write_source(folder, task)
    return build(folder, out, full=True)


@pytest.mark.parametrize("task", ENTRIES)
def test_every_task_is_built(everything, task):
    entry, splits = ENTRIES[task], built(everything, task)
    sizes = 2 * len(entry.labels) if entry.labels else 4
    assert len(splits["train"]) == len(splits["dev"]) == sizes
    full = inputs(read_examples(everything / task / f"{task}_full_train.tsv"))
    train, dev, test = (inputs(splits[split]) for split in ("train", "dev", "test"))
    assert not (train & dev or train & test or dev & test or full & (train | dev | test))
    for split in ("train", "dev") if entry.labels else ():
        found = [example.outputs[0] for example in splits[split]]
        assert {label: found.count(label) for label in entry.labels} == dict.fromkeys(entry.labels, 2)
    total = len(train | dev | test | full)
    assert total == (80 if not entry.test else 80 + len(test))


def test_the_checking_command_passes_what_was_built(everything):
    done = subprocess.run(
        [sys.executable, "-m", "data.build.check", str(everything), "--no_remarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 51


def test_summary_and_picture(everything):
    table = (everything / "summary.tsv").read_text().splitlines()
    assert len(table) == 52 and table[0].startswith("task\tgroup\tkind")
    boolq = dict(zip(table[0].split("\t"), table[1 + list(ENTRIES).index("boolq")].split("\t"), strict=True))
    assert boolq["train"] == "4" and boolq["test"] == "60" and boolq["full_train"] == "72"
    assert boolq["test_labels"] == "no 50%, yes 50%"
    assert (everything / "overview.png").read_bytes().startswith(b"\x89PNG")


LINES_OF = {  # SHA-256 of files built from the fixture rows: equal on every machine, Python and operating system
    "boolq": "99efef13ea14b1a28b05416eb31074fcb5b020a1c640ff62fea0865bd542c91b",
    "sciq": "e2b402a6e4739bd5d3afb9c9e9addf0180eb1b167e0921f3b576f557ecf267fe",
    "mc_taco": "23b8ced08f858591d9c02f667d8eb9470ee7a6fe160b6e9e3e144f4ba6f883d1",
}


@pytest.mark.parametrize("task", LINES_OF)
def test_the_same_seed_gives_the_same_lines_anywhere(everything, task):
    files = sorted((everything / task).glob("*.tsv"))
    assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() == LINES_OF[task]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl.gz", ".parquet", ".arrow"])
@pytest.mark.parametrize("task", ["boolq", "openbookqa", "hotpot_qa", "web_questions", "liar"])
def test_every_kind_of_file_gives_the_same_lines(everything, task, suffix, tmp_path):
    write_source(tmp_path / "in", task, suffix)
    out = build(tmp_path / "in", tmp_path / "out", full=True)
    for path in (everything / task).glob("*.tsv"):
        assert (out / task / path.name).read_bytes() == path.read_bytes()


def test_the_draw_does_not_depend_on_the_order_or_the_shards_of_the_source(everything, tmp_path):
    made = write_source(tmp_path / "other", "sciq")
    rows = made["train"]
    random.Random(0).shuffle(rows)
    folder = tmp_path / "in" / "allenai" / "sciq" / "data"
    for number in range(2):
        write_rows(folder / f"train-0000{number}-of-00002.jsonl", rows[40 * number : 40 * (number + 1)])
    write_rows(folder / "validation.jsonl", made["validation"])
    out = build(tmp_path / "in", tmp_path / "out")
    for split in ("train", "dev", "test"):
        name = f"sciq/sciq_4_42_{split}.tsv"
        assert (out / name).read_bytes() == (everything / name).read_bytes()


def test_seeds_differ_and_share_the_test_set(tmp_path):
    write_source(tmp_path / "in", "boolq", train=200)
    out = build(tmp_path / "in", tmp_path / "out", seeds=[13, 42], full=True, max_test=5)
    first, second = built(out, "boolq", 13), built(out, "boolq", 42)
    assert first["test"] == second["test"] and len(first["test"]) == 5
    assert inputs(first["train"]) != inputs(second["train"])
    few = set().union(*(inputs(splits[split]) for splits in (first, second) for split in ("train", "dev")))
    full = inputs(read_examples(out / "boolq" / "boolq_full_train.tsv"))
    assert not few & full and len(few | full) == 200


def test_max_full_draws_from_the_rest(tmp_path):
    write_source(tmp_path / "in", "sciq")
    for limit, lines in ((10, 10), (1000, 72)):
        out = build(tmp_path / "in", tmp_path / "out", full=True, max_full=limit)
        assert len(read_examples(out / "sciq" / "sciq_full_train.tsv")) == lines


def test_repeated_empty_and_unanswered_rows_are_left_out_and_counted(tmp_path):
    def row(number, **changes):
        return ROWS["boolq"][0](number) | changes

    train = [row(number) for number in range(20)] + [
        row(3),
        row(4, answer=None),
        row(1001),
        row(5, question="", passage=""),
    ]
    write_rows(tmp_path / "in/boolq/train.jsonl", train)
    write_rows(tmp_path / "in/boolq/validation.jsonl", [row(1001), row(1002), row(1002)])
    write_rows(
        tmp_path / "in/web_questions/train.jsonl",
        [
            *({"question": f"who is {n}?", "answers": ["Bo\tBerg", "", "Bo Berg"]} for n in range(30)),
            {"question": "x", "answers": [" "]},
        ],
    )
    out = build(tmp_path / "in", tmp_path / "out", full=True)
    counts = json.loads((out / "boolq/build.json").read_text())["counts"]
    assert counts == {"rows": 27, "no_answer": 1, "empty": 0, "repeated": 2, "across": 1}
    splits = built(out, "boolq")
    assert len(splits["test"]) == 2
    counts = json.loads((out / "web_questions/build.json").read_text())["counts"]
    assert counts["empty"] == 1
    assert built(out, "web_questions")["dev"][0].outputs == ("Bo Berg",)


def test_a_small_class_is_halved(tmp_path):
    rows = [ROWS["boolq"][0](number) | {"answer": number < 3} for number in range(40)]
    write_rows(tmp_path / "in/boolq/train.jsonl", rows)
    write_rows(tmp_path / "in/boolq/validation.jsonl", [ROWS["boolq"][0](1000)])
    out = build(tmp_path / "in", tmp_path / "out")
    splits = built(out, "boolq")
    assert [example.outputs[0] for example in splits["train"]] == ["no", "no", "yes", "yes"]
    assert [example.outputs[0] for example in splits["dev"]] == ["no", "no", "yes"]
    assert json.loads((out / "boolq/build.json").read_text())["short"] == {"yes": 3}


def test_a_full_train_file_without_lines_is_not_written(tmp_path):
    write_source(tmp_path / "in", "sciq", train=6)
    out = build(tmp_path / "in", tmp_path / "out", full=True)
    assert len(built(out, "sciq")["train"]) == 3 and len(built(out, "sciq")["dev"]) == 3
    assert not (out / "sciq" / "sciq_full_train.tsv").exists()


def test_a_built_task_is_skipped_and_another_setting_builds_it_again(tmp_path):
    write_source(tmp_path / "in", "boolq")
    out = build(tmp_path / "in", tmp_path / "out", seeds=[13, 42], full=True)
    record = out / "boolq" / "build.json"
    before = {path.name: path.stat().st_mtime_ns for path in (out / "boolq").iterdir()}
    build(tmp_path / "in", out, seeds=[13, 42], full=True)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "boolq").iterdir()} == before
    build(tmp_path / "in", out)
    assert sorted(path.name for path in (out / "boolq").iterdir()) == [
        "boolq_4_42_dev.tsv",
        "boolq_4_42_test.tsv",
        "boolq_4_42_train.tsv",
        "build.json",
    ]
    (out / "boolq" / "boolq_4_42_dev.tsv").unlink()
    build(tmp_path / "in", out)
    assert len(built(out, "boolq")["dev"]) == 4
    write_source(tmp_path / "in", "boolq", test=30)  # another source
    stamp = record.stat().st_mtime_ns
    build(tmp_path / "in", out)
    assert record.stat().st_mtime_ns != stamp and len(built(out, "boolq")["test"]) == 30


def changed(record: dict, *place: str, value) -> dict:
    """A copy of a record with another value at a place."""
    record = json.loads(json.dumps(record))
    within = record
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = value
    return record


BAD_RECORDS = {
    "a list": lambda r: [r],
    "empty": lambda r: {},
    "no files": lambda r: changed(r, "files", value={}),
    "files are a list": lambda r: changed(r, "files", value=list(r["files"])),
    "a file is a number": lambda r: changed(r, "files", "boolq_4_42_dev.tsv", value=5),
    "lines are a text": lambda r: changed(r, "files", "boolq_4_42_dev.tsv", "lines", value="4"),
    "labels are a list": lambda r: changed(r, "files", "boolq_4_42_test.tsv", "labels", value=["yes"]),
    "a file of another folder": lambda r: changed(r, "files", "../victim", value=r["files"]["boolq_4_42_dev.tsv"]),
    "no seeds": lambda r: changed(r, "settings", "seeds", value=[]),
    "seeds of other files": lambda r: changed(r, "settings", "seeds", value=[7]),
    "settings are null": lambda r: changed(r, "settings", value=None),
    "counts are null": lambda r: changed(r, "counts", value=None),
    "a count is true": lambda r: changed(r, "counts", "empty", value=True),
    "kind is a list": lambda r: changed(r, "kind", value=[]),
}


def test_a_record_of_another_shape_counts_as_absent(tmp_path, capsys):
    for task in ("boolq", "sciq"):
        write_source(tmp_path / "in", task)
    out = build(tmp_path / "in", tmp_path / "out")
    right = json.loads((out / "boolq" / "build.json").read_text())
    (out / "victim").write_text("x")
    for name, change in BAD_RECORDS.items():
        (out / "boolq" / "build.json").write_text(json.dumps(change(right)))
        assert summary.write(out)["task"].tolist() == ["sciq"], name
        assert "boolq/build.json is damaged, or not of this builder" in capsys.readouterr().err
    build(tmp_path / "in", out, seeds=[13])
    assert summary.write(out)["task"].tolist() == ["sciq", "boolq"] and (out / "victim").exists()


def test_checksums_of_another_shape(tmp_path):
    write_source(tmp_path / "in", "boolq")
    out = build(tmp_path / "in", tmp_path / "out")
    for text in ("[]", "{}", '{"files": [1]}', "{"):
        (out / "checksums.json").write_text(text)
        with pytest.raises(UserError, match="there are no checksums in"):
            build(tmp_path / "in", out, verify=True)
    build(tmp_path / "in", out)
    build(tmp_path / "in", out, verify=True)


def test_a_killed_build_starts_again(tmp_path):
    write_source(tmp_path / "in", "boolq")
    source, settings = Source(ENTRIES["boolq"], tmp_path / "in"), Settings(4, 2)

    def killed(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_task(source, settings, tmp_path / "out", killed)
    assert list((tmp_path / "out" / "boolq").iterdir()) == []
    assert "skipped" not in build_task(source, settings, tmp_path / "out")
    assert build_task(source, settings, tmp_path / "out")["skipped"]


def test_one_broken_task_does_not_stop_the_rest(tmp_path):
    write_source(tmp_path / "in", "boolq")
    write_source(tmp_path / "in", "sciq")
    (tmp_path / "in/sciq/train.jsonl").write_text('{"question": "x"}\n{oops\n')
    with pytest.raises(
        UserError, match=r"(?s)1 of 2 tasks were not built.*'sciq': the rows have no column 'distractor1'"
    ):
        build(tmp_path / "in", tmp_path / "out")
    assert built(tmp_path / "out", "boolq")
    assert not list((tmp_path / "out/sciq").glob("*.tsv"))


FAULTS = {
    "not JSON": ("train.jsonl", "{oops\n", r"train.jsonl, line 1: not JSON"),
    "not an object": ("train.jsonl", "[1]\n", r"line 1: expected an object with the columns question, passage"),
    "no rows": ("train.jsonl", "", r"'boolq': no lines for train"),
    "a label": (
        "train.jsonl",
        '{"question": "x", "passage": "y", "answer": 7}\n',
        r"row 1: unknown label '7'; known: 0 to 1",
    ),
    "no split": ("other.jsonl", "", r"has no files of split 'train', only validation; --one_split"),
    "two folders": ("a/train.jsonl", "", r"split 'train' is in several folders"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_source_is_named(name, tmp_path):
    file, text, message = FAULTS[name]
    write_rows(tmp_path / "in/boolq/validation.jsonl", [ROWS["boolq"][0](1)])
    for path in (tmp_path / "in/boolq" / file, *([tmp_path / "in/boolq/b/train.jsonl"] if "/" in file else [])):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        build(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "bolq"], "did you mean 'boolq'"),
        (["--shots", "0"], "--shots must be at least 1"),
        (["--max_test", "-1"], "--max_test must be at least 0"),
        (["--seeds", "1", "1"], "--seeds names 1 twice"),
        (["--from_dir", "/nowhere"], "there is no folder /nowhere"),
        (["--verify", "--out", "/nowhere"], "there are no checksums in /nowhere/checksums.json"),
        (["--job", "2"], "did you mean '--jobs'"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        run(parse(BuildConfig, flags))


def test_one_split_is_dealt_when_asked(tmp_path):
    write_rows(tmp_path / "in/boolq/dev.jsonl", [ROWS["boolq"][0](number) for number in range(100)])
    with pytest.raises(UserError, match="only validation; --one_split deals it"):
        build(tmp_path / "in", tmp_path / "out")
    splits = built(build(tmp_path / "in", tmp_path / "out", one_split=True), "boolq")
    assert 10 <= len(splits["test"]) <= 30


def test_a_data_set_of_several_tasks_needs_its_configuration_folder(tmp_path):
    rows = {
        split: [ROWS["superglue-copa"][0](number + start) for number in range(20)]
        for split, start in (("train", 0), ("validation", 50))
    }
    for split, made in rows.items():
        write_rows(tmp_path / "in/super_glue/copa" / f"{split}.jsonl", made)
    out = build(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["superglue-copa"]
    with pytest.raises(UserError, match=r"'superglue-record': .* has no folder superglue-record or aps/super_glue"):
        build(tmp_path / "in", tmp_path / "out", tasks=["superglue-record"])


def test_two_at_once(tmp_path):
    """The second would write its checksums over those of the first."""
    write_source(tmp_path / "in", "boolq")
    config = BuildConfig(tasks=["boolq"], from_dir=str(tmp_path / "in"), out=str(tmp_path / "out"), quiet=True, **SIZES)
    with hold(tmp_path / "out"), pytest.raises(UserError, match=r"out is in use by process \d+"):
        run(config)
    run(config)


def test_checksums_verify(tmp_path, capsys):
    write_source(tmp_path / "in", "boolq")
    write_source(tmp_path / "in", "sciq")
    out = build(tmp_path / "in", tmp_path / "out", tasks=["boolq"])
    build(tmp_path / "in", out, tasks=["sciq"])  # keeps those of boolq
    run(BuildConfig(out=str(out), verify=True))
    assert "6 files" in capsys.readouterr().out
    changed = out / "boolq" / "boolq_4_42_dev.tsv"
    changed.write_bytes(changed.read_bytes() + b"x\ty\n")
    (out / "sciq" / "sciq_4_42_dev.tsv").unlink()
    with pytest.raises(UserError, match=r"(?s)2 of 6 files.*boolq_4_42_dev.tsv differs.*sciq_4_42_dev.tsv is missing"):
        run(BuildConfig(out=str(out), verify=True))


def test_report_lists_every_task(capsys):
    run(BuildConfig(report=True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 53
    assert any(
        "| boolq | classification | ACC | google/boolq |" in line and "CC BY-SA 3.0 | no |" in line for line in lines
    )


# ---- the hub, played by a small module


class Hub:
    """Stands for the package `datasets`: what it is asked for, and rows or an error for each way of reading."""

    def __init__(self, native=None, converted=None):
        self.native, self.converted, self.asked = native, converted, []

    def disable_progress_bars(self):
        """As the package."""

    def load_dataset(self, path, *args, **options):
        """Rows of the data set itself or of its conversion."""
        self.asked.append((path, *args, options.get("data_files", options["split"])))
        assert options["streaming"] is True
        rows = self.converted if path == "parquet" else self.native
        if isinstance(rows, Exception):
            raise rows
        return Rows(rows)


class Rows(list):
    """A stream that knows its columns."""

    column_names = None


@pytest.fixture
def reachable(monkeypatch):
    """The hub answers."""
    monkeypatch.setattr(rows_module, "_reach_hub", lambda: None)


def test_the_hub_is_read_as_it_is_or_from_its_conversion(monkeypatch, reachable):
    made = [ROWS["boolq"][0](number) for number in range(3)]
    script = RuntimeError("Dataset scripts are no longer supported, but found x.py")
    hub = Hub(native=made, converted=script)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert list(rows_module.from_hub(ENTRIES["boolq"], "train")) == made
    assert hub.asked == [("google/boolq", None, "train")]
    hub = Hub(native=script, converted=made)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert list(rows_module.from_hub(ENTRIES["glue-qqp"], "train")) == made
    files = "hf://datasets/nyu-mll/glue@refs/convert/parquet/qqp/*train/*.parquet"
    assert hub.asked == [("nyu-mll/glue", "qqp", "train"), ("parquet", files)]
    hub.asked.clear()
    assert (
        list(rows_module.from_hub(ENTRIES["cosmos_qa"], "train")) == made
    )  # known to be a script: the conversion first
    assert hub.asked == [("parquet", "hf://datasets/allenai/cosmos_qa@refs/convert/parquet/*/*train/*.parquet")]


def test_an_unreadable_source_says_why(monkeypatch, reachable):
    monkeypatch.setitem(sys.modules, "datasets", Hub(ConnectionError("offline"), FileNotFoundError("no such branch")))
    with pytest.raises(
        UserError, match=r"'boolq'.*split 'train' of google/boolq.*ConnectionError: offline.*no such branch"
    ):
        rows_module.from_hub(ENTRIES["boolq"], "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-data\.txt"):
        rows_module.from_hub(ENTRIES["boolq"], "train")


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    def offline(*args, **options):
        raise urllib.error.URLError("no such host")

    monkeypatch.setitem(sys.modules, "datasets", Hub())
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"the hub does not answer \(.*no such host.*\); --from_dir"):
        rows_module.from_hub(ENTRIES["boolq"], "train")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install -r requirements-data\.txt"):
        list(rows_module.from_files(ENTRIES["boolq"], tmp_path / "boolq", "train"))


# ---- the draws, against slow ones


def test_the_draw_keeps_the_lines_of_smallest_rank():
    keys = random.Random(1).sample(range(10**6), 500)
    drawn = Smallest("salt", 20)
    for key in keys:
        drawn.offer(key, Example(str(key), ("x",)))
    slow = sorted(keys, key=lambda key: rank("salt", key))[:20]
    assert [example.input for example in drawn.by_rank()] == [str(key) for key in slow]
    assert [int(example.input) for example in drawn.by_arrival()] == [key for key in keys if key in set(slow)]
    assert len(drawn._heap) == 20


def test_the_draw_is_uniform():
    """Each of 50 lines is drawn about as often as any other over 400 seeds."""
    often = dict.fromkeys(range(50), 0)
    for seed in range(400):
        few = FewShot("task", seed, 5, ())
        for key in often:
            few.offer(key, Example(str(key), ("x",)))
        for example in few.draw()[0]:
            often[int(example.input)] += 1
    assert sum(often.values()) == 2000 and all(15 < count < 70 for count in often.values())


def test_shares_are_as_large_as_asked():
    share = sum(in_share("salt", key, 0.8) for key in range(5000)) / 5000
    assert share == pytest.approx(0.8, abs=0.02)


@pytest.mark.slow
def test_processes_build_the_same(everything, tmp_path):
    for task in ("boolq", "sciq", "mc_taco"):
        write_source(tmp_path / "in", task)
    out = build(tmp_path / "in", tmp_path / "out", full=True, jobs=3)
    for task in ("boolq", "sciq", "mc_taco"):
        for path in (everything / task).glob("*.tsv"):
            assert (out / task / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_largest_task_needs_less_than_two_gigabytes(tmp_path):
    """amazon_polarity has 3,600,000 train rows; with its full train file."""
    folder = tmp_path / "in" / "amazon_polarity"
    folder.mkdir(parents=True)
    words = " ".join(["the lamp went out at once and nobody came"] * 9)
    for split, number in (("train", 3_600_000), ("test", 400_000)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for n in range(number):
                file.write(f'{{"label": {n % 2}, "title": "{split} {n}", "content": "{words}"}}\n')
    script = (
        "import resource\nfrom data.build.run import BuildConfig, run\n"
        f"run(BuildConfig(tasks=['amazon_polarity'], from_dir={str(tmp_path / 'in')!r}, out={str(tmp_path / 'out')!r},"
        " full=True, quiet=True))\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.split()[-1])
    print(f"peak memory {kilobytes / 1e6:.2f} GB")
    assert kilobytes < 2_000_000
