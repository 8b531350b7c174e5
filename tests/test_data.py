"""Reading, tokenising and batching."""

from itertools import islice

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_backbone, golden_npz

from pewe.batches import IGNORED, collate, collate_stack, scoring_batches, training_updates
from pewe.data import (
    DataConfig,
    Encoded,
    Example,
    chosen_prefixes,
    find_prefixes,
    load_split,
    read_examples,
    task_names,
)
from pewe.errors import UserError


def encoded(outputs: list[list[int]]) -> Encoded:
    """Line i has input (i, 1) and one-token outputs."""
    examples = tuple(Example(str(i), tuple(map(str, line))) for i, line in enumerate(outputs))
    inputs = tuple((i, 1) for i in range(len(outputs)))
    return Encoded("task", examples, inputs, tuple(tuple((token,) for token in line) for line in outputs))


def test_read_examples(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes("\ufeffein Käse\tja\r\n two \tb\tc \n".encode())
    assert read_examples(path) == (Example("ein Käse", ("ja",)), Example("two", ("b", "c")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nno tab here\n", "line 2: no TAB"),
        (b"a\tb\nc\t\n", "line 2: empty output in column 2"),
        (b"a\tb\nc\td\t \te\n", "line 2: empty output in column 3"),
        (b"\tb\n", "line 1: empty input"),
        (b"a\tb\n\n", "line 2: no TAB"),
        (b"a\tb\n\xff\xfe\tc\n", "line 2: not UTF-8"),
        (b"", "is empty"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "task_64_42_train.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_examples(path)
    assert str(path) in str(error.value)


def test_prefixes_leave_out_the_full_training_file(tmp_path):
    folder = tmp_path / "boolq"
    folder.mkdir()
    for name in ("boolq_64_42", "boolq_64_13", "boolq_full"):
        (folder / f"{name}_train.tsv").write_text("a\tb\n")
    assert find_prefixes(tmp_path, "boolq") == ["boolq_64_13", "boolq_64_42"]
    with pytest.raises(UserError, match="did you mean 'boolq'"):
        find_prefixes(tmp_path, "bolq")


def test_prefixes_that_the_flags_choose(tmp_path):
    (tmp_path / "boolq").mkdir()
    for name in ("boolq_64_1", "boolq_64_42", "boolq_full"):
        (tmp_path / "boolq" / f"{name}_train.tsv").touch()
    flags = {"task_dir": str(tmp_path), "seed": 42}
    assert chosen_prefixes(DataConfig(**flags), "boolq") == ["boolq_64_1", "boolq_64_42"]
    assert chosen_prefixes(DataConfig(**flags, one_prefix=True), "boolq") == ["boolq_64_1"]
    assert chosen_prefixes(DataConfig(**flags, one_prefix=True, sample="by_seed"), "boolq") == ["boolq_64_42"]
    with pytest.raises(
        UserError, match=r"one <prefix>_2_train.tsv \(--sample by_seed\), found boolq_64_1, boolq_64_42"
    ):
        chosen_prefixes(DataConfig(task_dir=str(tmp_path), sample="by_seed", seed=2), "boolq")
    (tmp_path / "boolq" / "boolq_16_42_train.tsv").touch()
    with pytest.raises(UserError, match="found boolq_16_42, boolq_64_42"):
        chosen_prefixes(DataConfig(**flags, sample="by_seed"), "boolq")


def test_task_names():
    assert task_names(DataConfig(task_list="binary")) == ["boolq", "mc_taco"]
    assert len(task_names(DataConfig(task_list="QA_task_list"))) == 32 and len(task_names(DataConfig())) == 12
    for config, message in (
        (DataConfig(task_list="binarry"), "did you mean 'binary'"),
        (DataConfig(tasks=["bolq"]), "did you mean 'boolq'"),
        (DataConfig(tasks=["boolq", "boolq"]), "twice"),
    ):
        with pytest.raises(UserError, match=message):
            task_names(config)


def test_token_ids_of_the_original(golden):
    tokenizer, arrays = golden_backbone().tokenizer, golden_npz("data/tokenized.npz")
    config = DataConfig(task_dir=str(GOLDEN / "data"), max_input_length=32, max_output_length=12)
    tasks = sorted({key.split("/")[0] for key in arrays})
    assert len(tasks) == 32
    for task in tasks:
        for split in ("train", "dev", "test"):
            ours = load_split(tokenizer, config, task, f"{task}_64_42", split)
            masks = arrays[f"{task}/{split}/attention_mask"].astype(bool)
            inputs = [tuple(row[mask]) for row, mask in zip(arrays[f"{task}/{split}/input_ids"], masks, strict=True)]
            labels = [tuple(row[row != -100]) for row in arrays[f"{task}/{split}/decoder_input_ids"]]
            bounds = arrays[f"{task}/{split}/metadata"]
            assert list(ours.inputs) == inputs
            assert list(ours.outputs) == [tuple(labels[start:end]) for start, end in bounds]


def test_labels_of_the_loss():
    """The first answer of each line; the original's flat index shifts after a line with two answers."""
    split = encoded([[10], [20, 21], [30], [40]])
    assert split.labels() == [(10,), (20,), (30,), (40,)]
    assert split.labels(flat=True) == [(10,), (20,), (21,), (30,)]


def test_scoring_batches_keep_the_order():
    batches = list(scoring_batches(encoded([[5], [6], [7]]), 2, pad=0))
    assert [batch.labels.flatten().tolist() for batch in batches] == [[5, 6], [7]]
    assert batches[1].input_ids.tolist() == [[2, 1]]


def test_a_short_member_of_a_stack_is_filled_without_labels():
    batch = collate_stack([[((3, 4, 1), (9, 1))], [((5, 1), (8,)), ((6, 1), (7, 1))], []], pad=0)
    assert batch.input_ids.tolist() == [[3, 4, 1], [3, 4, 1], [5, 1, 0], [6, 1, 0], [3, 4, 1], [3, 4, 1]]
    assert batch.labels.tolist() == [[9, 1], [-100, -100], [8, -100], [7, 1], [-100, -100], [-100, -100]]
    assert batch.attention_mask.sum(1).tolist() == [3, 3, 2, 2, 3, 3]


def rows_of(update) -> list[int]:
    return [inputs[0] for micro in update for inputs, _ in micro]


def test_training_updates_see_every_line_once_an_epoch_and_repeat_exactly():
    split = encoded([[i] for i in range(10)])
    first = list(islice(training_updates(split, "42/task", 4, 1, True), 6))
    again = list(islice(training_updates(split, "42/task", 4, 1, True), 6))
    other = list(islice(training_updates(split, "43/task", 4, 1, True), 6))
    assert first == again != other
    assert [len(rows_of(update)) for update in first] == [4, 4, 2, 4, 4, 2]
    epochs = [[row for update in half for row in rows_of(update)] for half in (first[:3], first[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_training_draws_one_of_the_answers():
    split = encoded([[1, 2, 3]] * 50)
    update = next(training_updates(split, "42/task", 50, 1, True))
    assert {label for _, (label,) in update[0]} == {1, 2, 3}


def test_accumulation_and_its_bug_in_the_original():
    """Three micro-batches an epoch, two per update: ours fill up across epochs; the original steps after the first."""
    split = encoded([[i] for i in range(10)])
    ours = [len(update) for update in islice(training_updates(split, "s", 4, 2, True), 6)]
    original = [len(update) for update in islice(training_updates(split, "s", 4, 2, False), 6)]
    assert ours == [2] * 6
    assert original == [1, 2, 1, 2, 1, 2]
    longer = encoded([[i] for i in range(14)])  # four micro-batches: the fourth is dropped
    assert [len(u) for u in islice(training_updates(longer, "s", 4, 2, False), 4)] == [1, 2, 1, 2]


def test_batches_move_to_a_device():
    batch = next(scoring_batches(encoded([[5]]), 2, pad=0)).to(torch.device("cpu")).repeat(3)
    assert np.array_equal(batch.labels.numpy(), [[5], [5], [5]])


def test_pieces_hold_every_row_once_and_pad_little():
    lengths = [3, 9, 1, 9, 4, 2, 7]
    rows = [(list(range(1, n + 1)), [n] * (1 + n % 3)) for n in lengths]
    batch = collate(rows, pad=0)
    for tokens in (1, 12, 24, 1000):
        pieces = list(batch.pieces(tokens))
        seen = [
            (ids[: int(mask.sum())].tolist(), labels[labels != IGNORED].tolist())
            for piece in pieces
            for ids, mask, labels in zip(piece.input_ids, piece.attention_mask, piece.labels, strict=True)
        ]
        assert sorted(seen) == sorted(rows)
        for piece in pieces:
            assert len(piece.input_ids) == 1 or piece.input_ids.numel() + piece.labels.numel() <= tokens
            assert piece.attention_mask.sum(1).max() == piece.input_ids.shape[1]  # no column of padding only
    assert len(list(batch.pieces(1))) == 7 and len(list(batch.pieces(1000))) == 1
