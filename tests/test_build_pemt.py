"""PEMT's 23 tasks: text, splits, few-shot draw and metrics, with our own rows and against what its original code computed."""

import json
import math
from dataclasses import replace

import pytest
from test_build_run import write_rows

from data.build import check
from data.build.entry import clean
from data.build.pemt import ENTRIES, PREFIX, pad_punctuation
from data.build.pemt_splits import few_shot, permutation
from data.build.registry import ALL, selected
from data.build.run import BuildConfig, run
from pewe import metrics
from pewe.data import Example, read_examples
from pewe.errors import UserError
from pewe.tuning.config import TuneConfig
from pewe.tuning.tune import tune
from task_list import METRICS, TASK_LISTS, pemt_task_list

PAIR = {"sentence1": "Ana has a #th hen .", "sentence2": "She keeps animals."}
PAIR_TEXT = "sentence1: Ana has a 0th hen . sentence2: She keeps animals."
PREMISE = {"premise": "Ana has a #th hen .", "hypothesis": "She keeps animals."}
PREMISE_TEXT = "premise: Ana has a 0th hen . hypothesis: She keeps animals."
MRQA = {"question": "who's #?", "context": "It's\tAna_# (of Köln).", "answer": "Ana_#"}
MRQA_TEXT = "question: who ' s 0 ?  context: It ' s Ana_0 ( of Köln ) . "

ROWS = {  # columns, "#" being the row's number; number of labels; source text and target of row 0, as the original writes them
    "mnli": (PREMISE, 3, PREMISE_TEXT, "entailment"),
    "qnli": (
        {"question": "Who is #?", "sentence": "Ana is."},
        2,
        "question: Who is 0? sentence: Ana is.",
        "entailment",
    ),
    "qqp": (
        {"question1": "Who is #?", "question2": "Who's #?"},
        2,
        "question1: Who is 0? question2: Who's 0?",
        "not_duplicate",
    ),
    "sst2": ({"sentence": "a dull # hours "}, 2, "sentence: a dull 0 hours ", "negative"),
    "squad": (
        {
            "question": "Where's #?",
            "context": "At no. # (left).",
            "answers": {"text": ["no. #", "left"], "answer_start": [3, 9]},
        },
        0,
        "question: Where ' s 0 ?  context: At no . 0 ( left ) . ",
        "no . 0",
    ),
    "superglue-record": (
        {
            "passage": 'Ana said "#!"\n@highlight\nBo left\n@highlight\nIt rained',
            "query": "@placeholder spoke.",
            "entities": ["Bo", "Ana"],
            "answers": ["Ana", "Ms. #"],
        },
        0,
        'record query: @placeholder spoke. entities: Bo, Ana passage: Ana said "0!" Bo left. It rained',
        ["Ana", "Ms. 0"],
    ),
    "cola": ({"sentence": "Ana # sleep."}, 2, "sentence: Ana 0 sleep.", "unacceptable"),
    "rte": (PAIR, 2, PAIR_TEXT, "entailment"),
    "mrpc": (PAIR, 2, PAIR_TEXT, "not_equivalent"),
    "stsb": (PAIR | {"label": 2.75}, 0, PAIR_TEXT, "2.8"),
    "superglue-cb": (PREMISE, 3, PREMISE_TEXT, "entailment"),
    "superglue-wic": (PAIR | {"word": "hen"}, 2, PAIR_TEXT + " word: hen", "False"),
    "superglue-wsc-fixed": (
        {
            "text": "When # men saw Mr. (Bo) they said that he slept.",
            "span1_text": "Mr. (Bo)",
            "span1_index": 4,
            "span2_text": "they",
            "span2_index": 6,
        },
        2,
        "text: When 0 men saw * Mr. (Bo) * # they # said that he slept.",
        "False",
    ),
    "superglue-boolq": (
        {"question": "is # odd", "passage": "It\nis."},
        2,
        "question: is 0 odd passage: It\nis.",
        "False",
    ),
    "superglue-multirc": (
        {
            "paragraph": "<b>1: </b>Ana is #.<br>Bo is old.",
            "question": "Who is <b>#</b>?",
            "answer": "Ana",
            "idx": {"paragraph": 1, "question": 12, "answer": 3},
        },
        2,
        "question: Who is 0? answer: Ana paragraph: 1: Ana is 0. Bo is old.",
        "False",
    ),
    **dict.fromkeys(("nq", "newsqa", "hotpotqa", "searchqa"), (MRQA, 0, MRQA_TEXT, "Ana_0")),
    "scitail": (
        {"sentence1": "Ice # is cold.", "sentence2": "It is cold.", "gold_label": "neutral"},
        0,
        "premise: Ice 0 is cold. hypothesis: It is cold.",
        "neutral",
    ),
    "yelp_polarity": ({"text": "Good\\nfood, # times"}, 2, "sentence: Good\\nfood, 0 times", "0"),
    "winogrande": (
        {"sentence": "Bo saw # hens but _ ran.", "option1": "Bo", "option2": "hens", "answer": "2"},
        0,
        "sentence: Bo saw 0 hens but _ ran. option1: Bo option2: hens",
        "hens",
    ),
    "paws": (PAIR, 2, PAIR_TEXT, "0"),
}


def row(task, number, label=None):
    """Row `number` of a task; labels follow one another."""
    columns, labels, *_ = ROWS[task]
    made = json.loads(json.dumps(columns).replace("#", str(number))) if task != "superglue-wsc-fixed" else dict(columns)
    made["text"] = made["text"].replace("#", str(number)) if "text" in made else None
    made = {name: value for name, value in made.items() if value is not None}
    return made | ({"label": number % labels if label is None else label} if labels else {})


def source_and_targets(entry, one):
    """The text before any cleaning, and the answers."""
    text, output = entry.convert(one)
    if entry.labels:
        return text, list(entry.line(one)[1][:1])
    return text, [output] if isinstance(output, str) else list(output)


@pytest.mark.parametrize("task", ROWS)
def test_text_is_the_originals(task):
    _, _, text, targets = ROWS[task]
    targets = [targets] if isinstance(targets, str) else targets
    entry, one = ALL[PREFIX + task], row(task, 0)
    assert source_and_targets(entry, one) == (text, targets)
    table = {name: json.dumps(value) if isinstance(value, (list, dict)) else str(value) for name, value in one.items()}
    assert entry.line(table) == entry.line(one)
    assert entry.line(one)[0] == clean(text)


def test_texts_of_the_golden_examples(golden_pemt):
    cases, wrong = json.loads((golden_pemt / "task_formats.json").read_text()), []
    for task in ROWS:
        case, entry = cases[task], ALL[PREFIX + task]
        text, targets = source_and_targets(entry, case["example"])
        expected = [(line["source"], line["target"]) for line in case["output"]]
        names = (
            case["class_names"].get("label") if task != "yelp_polarity" else None
        )  # its targets are the numbers, as golden
        if [(text, target) for target in targets] != expected or (names and list(entry.labels) != names):
            wrong.append(task)
    assert not wrong


def test_lists_names_and_metrics():
    assert [entry.task for entry in ENTRIES] == pemt_task_list == [PREFIX + task for task in ROWS]
    assert [entry.task for entry in selected(["pemt_sources"])] == TASK_LISTS["pemt_sources"] == pemt_task_list[:6]
    assert len(selected([])) == 51 and {METRICS[task] for task in pemt_task_list} <= metrics.METRICS.keys()


def test_record_has_a_line_for_each_answer_and_multirc_its_question():
    record, multirc = ALL["pemt-superglue-record"], ALL["pemt-superglue-multirc"]
    example = Example(*record.line(row("superglue-record", 0)))
    assert [line.outputs for line in record.spread(example, scored=False)] == [("Ana",), ("Ms. 0",)]
    assert [line.outputs for line in record.spread(example, scored=True)] == [("Ana", "Ms. 0"), ("Ms. 0", "Ana")]
    example = Example(*multirc.line(row("superglue-multirc", 1)))
    assert [line.outputs for line in multirc.spread(example, scored=False)] == [("True",)]
    assert [line.outputs for line in multirc.spread(example, scored=True)] == [("True", "12")]
    assert record.line(row("superglue-record", 0) | {"answers": []}) is None
    assert ALL["pemt-stsb"].line(row("stsb", 0) | {"label": -1.0}) is None
    assert ALL["pemt-winogrande"].line(row("winogrande", 0) | {"answer": ""}) is None


def test_punctuation_is_padded():
    assert pad_punctuation("a_b-c\n\n(½ é e\u0301)$5.5m") == "a_b - c ( ½ é e\u0301 ) $ 5 . 5m"


def test_few_shot_rows():
    classes = ["a", "b", None, "a", "a", "b", "c"] * 30
    chosen = few_shot(classes, 5, seed=42)
    assert sorted(classes[index] for index in chosen) == ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    assert chosen == few_shot(classes, 5, seed=42) != few_shot(classes, 5, seed=43)
    assert few_shot(["a", None, "a"], 5, seed=1) in ([0, 2], [2, 0])


def test_golden_splits(golden_pemt):
    splits = json.loads((golden_pemt / "splits.json").read_text())
    order = permutation(57)
    assert order[:28] == splits["validation_indices_n57_seed42"] and order[28:] == splits["test_indices_n57_seed42"]
    for k in (4, 8, 16):
        assert few_shot(splits["labels"], k, 42) == splits[f"few_shot_{k}_seed42"]
    assert few_shot([""] * 60, 8, 42) == splits["stsb_few_shot_8_n60"]


# ---- metrics


def as_golds(targets) -> tuple[list, list]:
    """Targets of the original as acceptable answers."""
    if isinstance(targets[0], dict):
        return [(target["value"], str(target["group"])) for target in targets]
    return [tuple(target) if isinstance(target, list) else (target,) for target in targets]


def first_of(score):
    """A score of first answers."""
    return lambda predictions, golds: score(predictions, [answers[0] for answers in golds])


PARTS = {
    "accuracy": metrics.METRICS["ACC"],
    "matthews_correlation": metrics.METRICS["Matthews"],
    "pearson": first_of(metrics.correlation_or_zero("pearsonr")),
    "spearmanr": first_of(metrics.correlation_or_zero("spearmanr")),
    "em": metrics.METRICS["EM"],
    "f1": metrics.METRICS["QA-F1"],
    "multirc f1": metrics.multirc_f1,
    "multirc em": metrics.multirc_em,
}


def test_golden_metrics(golden_pemt):
    seen = set()
    for case in json.loads((golden_pemt / "metrics.json").read_text()):
        multirc = isinstance(case["targets"][0], dict)
        predictions = [one["value"] if multirc else one for one in case["predictions"]]
        for name, expected in case["result"].items():
            part = f"multirc {name}" if multirc else name
            assert 100 * PARTS[part](predictions, as_golds(case["targets"])) == pytest.approx(expected, abs=1e-9), case
            seen.add(part)
    assert seen == PARTS.keys()


@pytest.mark.parametrize(
    ("metric", "predictions", "golds", "value"),
    [
        ("Matthews", ["yes", "no", "yes", "no"], [["yes"], ["no"], ["no"], ["yes"]], 0.0),
        ("Matthews", ["yes", "no"], [["yes"], ["no"]], 1.0),
        ("Pearson-Spearman", ["1", "2", "4"], [["2"], ["4"], ["8"]], 1.0),
        ("Pearson-Spearman", ["x", "x"], [["2"], ["4"]], 0.0),
        ("EM-F1", ["the red house"], [["red", "blue house"]], (0 + 2 / 3) / 2),
        ("MultiRC", ["True", "False", "?"], [["True", "3"], ["False", "3"], ["True", "4"]], (2 / 3 + 1 / 2) / 2),
    ],
)
def test_by_hand(metric, predictions, golds, value):
    assert metrics.evaluate(metric, predictions, golds) == pytest.approx(value)
    assert math.isfinite(value)


# ---- folders


def built(tmp_path, task, sizes, **changes):
    """Build one task from files of these sizes; returns the lines of each file by the end of its name."""
    start = 0
    for split, size in sizes.items():
        write_rows(tmp_path / f"in/{PREFIX}{task}/{split}.jsonl", [row(task, start + number) for number in range(size)])
        start += size
    flags = {"tasks": [PREFIX + task], "shots_per_class": 4, "full": True, "out": str(tmp_path / "out"), "quiet": True}
    run(BuildConfig(**{**flags, "from_dir": str(tmp_path / "in"), **changes}))
    folder = tmp_path / "out" / (PREFIX + task)
    return {path.stem.removeprefix(f"{PREFIX}{task}_"): read_examples(path) for path in folder.glob("*.tsv")}


def texts(task, numbers):
    """The inputs of these rows."""
    return [ALL[PREFIX + task].line(row(task, number))[0] for number in numbers]


def inputs(examples):
    return [example.input for example in examples]


def test_a_small_task_halves_its_validation_split(tmp_path):
    files = built(tmp_path, "superglue-cb", {"train": 30, "validation": 57})
    order = [30 + index for index in permutation(57)]
    assert inputs(files["4_42_dev"]) == texts("superglue-cb", order[:28])
    assert inputs(files["4_42_test"]) == texts("superglue-cb", order[28:])
    assert sorted(inputs(files["full_train"])) == sorted(texts("superglue-cb", range(30)))
    chosen = few_shot([str(number % 3) for number in range(30)], 4, 42)
    assert inputs(files["4_42_train"]) == texts("superglue-cb", chosen)


def test_a_large_task_holds_out_train_rows(tmp_path):
    files = built(tmp_path, "sst2", {"train": 1100, "validation": 20}, seeds=[42, 7], max_full=50)
    order = permutation(1100)
    assert inputs(files["4_42_dev"]) == texts("sst2", order[:1000]) == inputs(files["4_7_dev"])
    assert inputs(files["full_train"]) == texts("sst2", order[1000:1050])
    assert sorted(inputs(files["4_42_test"])) == sorted(texts("sst2", range(1100, 1120)))
    few = {seed: set(inputs(files[f"4_{seed}_train"])) for seed in (42, 7)}
    assert few[42] != few[7] and not (few[42] | few[7]) & set(inputs(files["4_42_dev"])) and len(few[42]) == 8


def test_a_task_with_splits_of_its_own_keeps_them(tmp_path):
    sizes = {"train": 12, "validation_mismatched": 9, "validation_matched": 7}
    files = built(tmp_path, "mnli", sizes, max_test=5)
    assert inputs(files["4_42_dev"]) == texts("mnli", range(12, 21)) and len(files["4_42_test"]) == 5
    assert set(inputs(files["4_42_test"])) <= set(texts("mnli", range(21, 28)))
    assert len(files["4_42_train"]) == len(files["full_train"]) == 12


def test_tasks_without_classes_draw_k_lines(tmp_path):
    files = built(tmp_path, "stsb", {"train": 20, "validation": 10})
    assert len(files["4_42_train"]) == 4 and len(files["4_42_dev"]) == len(files["4_42_test"]) == 5
    files = built(tmp_path, "superglue-record", {"train": 1010, "validation": 10})
    assert {split: len(lines) for split, lines in files.items()} == {
        "4_42_train": 8,
        "4_42_dev": 2000,
        "4_42_test": 20,
        "full_train": 20,
    }


def test_both_stages_run_on_what_was_built(tmp_path, tiny_backbone):
    for task in ("rte", "superglue-cb", "superglue-multirc"):
        built(tmp_path, task, {"train": 20, "validation": 10})
    base = TuneConfig(
        model=str(tiny_backbone),
        task_dir=str(tmp_path / "out"),
        device="cpu",
        do_train=True,
        do_predict=True,
        bsz_list=[4],
        train_iters=2,
        max_input_length=32,
        max_output_length=4,
        expert_rank=2,
        expert_path=str(tmp_path / "1"),
        quiet=True,
    )
    sources = ["pemt-rte", "pemt-superglue-cb"]
    tune(replace(base, tune_method="pemt_source", full_train=True, tasks=sources, output_dir=str(tmp_path / "1")))
    target = replace(base, tune_method="pemt", tasks=["pemt-superglue-multirc"], output_dir=str(tmp_path / "2"))
    (row,) = tune(replace(target, experts=sources)).to_dict("records")
    assert row["metric"] == "MultiRC" and 0 <= row["test"] <= 1
    assert row["test_moe_weight_0"] + row["test_moe_weight_1"] == pytest.approx(1)


def test_what_was_built_is_checked_summed_up_and_skipped(tmp_path):
    for _ in range(2):
        built(tmp_path, "superglue-multirc", {"train": 20, "validation": 10})
    check.run(check.CheckConfig([str(tmp_path / "out")]))
    assert "pemt-superglue-multirc\tpemt_targets" in (tmp_path / "out/summary.tsv").read_text()
    with pytest.raises(UserError, match=r"'pemt-cola' keeps the splits of its data set: --one_split cannot deal them"):
        built(tmp_path, "cola", {"train": 20}, one_split=True)
