"""Text files as other systems write them: the same lines in every reader, or a message that names file and line."""

import random
import shutil

import pytest
import tokenizers
from conftest import MINI_TASKS, ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.build import check
from data.build.entry import clean
from pewe.backbone import load_tokenizer
from pewe.data import DataConfig, find_prefixes, load_split, read_examples, split_path, task_names
from pewe.deltas.pemt_task import descriptions
from pewe.errors import UserError
from pewe.flags import check as check_flags
from pewe.fusion.domains import read_domains, read_tags
from pewe.grid.experiment import material
from pewe.similarity.config import SimilarityConfig
from pewe.texts import read_lines, visible
from pewe.tokens import tokenise
from pewe.tuning.config import TuneConfig
from task_list import METRICS, TASK_LISTS

TASK = MINI_TASKS[0]


def checked(path):
    """What the checking command reads; what it finds is raised as one error."""
    findings = []
    lines = check.read(path, TASK, True, findings)
    if findings:
        raise UserError(str(findings[0]))
    return [(text, outputs[0]) for _, text, outputs in lines]


READERS = {  # of lines of two cells
    "examples": lambda path: [(example.input, example.outputs[0]) for example in read_examples(path)],
    "check": checked,
    "tags": lambda path: [pair for words, tags in read_tags(path) for pair in zip(words, tags, strict=True)],
    "descriptions": lambda path: list(descriptions(path).items()),
}
TEXTS = {
    "plain": (b"EU\tB-ORG\nand\tO\n", [("EU", "B-ORG"), ("and", "O")]),
    "no end of line": (b"EU\tB-ORG\nand\tO", [("EU", "B-ORG"), ("and", "O")]),
    "Windows": (b"EU\tB-ORG\r\nand\tO\r\n", [("EU", "B-ORG"), ("and", "O")]),
    "old Mac": (b"EU\tB-ORG\rand\tO\r", [("EU", "B-ORG"), ("and", "O")]),
    "byte order mark": (b"\xef\xbb\xbfEU\tB-ORG\nand\tO\n", [("EU", "B-ORG"), ("and", "O")]),
    "two files in one": (b"\xef\xbb\xbfEU\tB-ORG\n\xef\xbb\xbfand\tO\n", [("EU", "B-ORG"), ("and", "O")]),
    **{
        f"U+{ord(one):04X} in a word": (
            f"call{one}now\tB-X\nand\tO\n".encode(),
            [(f"call{one}now", "B-X"), ("and", "O")],
        )
        for one in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    },
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", TEXTS)
def test_lines_are_those_of_the_file(reader, text, tmp_path):
    path = tmp_path / "né [x]*_64_42_dev.tsv"
    content, wanted = TEXTS[text]
    path.write_bytes(content)
    assert READERS[reader](path) == wanted


BAD = {
    "latin-1": ("é\tO\n".encode("latin-1"), "line 3: not UTF-8 (byte 0)"),
    "UTF-16": ("a\tO\n".encode("utf-16"), "line 3: not UTF-8 (byte 0)"),
    "half a surrogate pair": (b"a\xed\xa0\x80b\tO\n", "line 3: not UTF-8 (byte 1)"),
    "NUL": (b"a\0b\tO\n", "line 3: a NUL character"),
    "TABs only": (b"\t\n", "line 3: e"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_no_text_is_named(reader, name, tmp_path):
    path = tmp_path / "x.tsv"
    line, message = BAD[name]
    path.write_bytes(b"EU\tB-ORG\nof\tO\n" + line)
    if (reader, name) == ("tags", "TABs only"):
        assert len(READERS[reader](path)) == 2  # a line without a word ends a sentence
        return
    with pytest.raises(UserError) as error:
        READERS[reader](path)
    assert f"{path}, {message}" in str(error.value)


@pytest.mark.parametrize("reader", ["examples", "check", "tags"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_called_empty(reader, content, tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is empty"):
        READERS[reader](path)


def test_no_file(tmp_path):
    for read in (*READERS.values(), lambda path: list(read_lines(path))):
        with pytest.raises(UserError, match="there is no file"):
            read(tmp_path / "none")
        with pytest.raises(UserError, match="there is no file"):
            read(tmp_path)


def test_a_built_line_can_be_read(tmp_path):
    """What the reader refuses or splits at is never written."""
    assert clean("a\0b\r\nc\x85d\u2028e") == "a b c d e"


@pytest.mark.parametrize("line", ["B-\t", "word\tB-", "word\tX-ORG", "word O", "word\tO\tO", "\tO"])
def test_a_tag_is_a_tag(line, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(f"EU\tB-ORG\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x.txt, line 2: expected word TAB tag"):
        read_tags(path)


def test_a_blank_behind_a_tag_makes_no_new_type(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("Peter\tB-PER \n\x85\tO\nBlack burn\tI-PER\nran\tO  \n", encoding="utf-8")
    assert read_tags(path) == [(["Peter", "\x85", "Black burn", "ran"], ["B-PER", "O", "I-PER", "O"])]


# ---- folders


HIDDEN = ("._{}", ".~lock.{}", ".{}.swp.tsv")


@pytest.fixture
def mac(tiny_data, tmp_path):
    """The tiny data, with a hidden file of an operating system beside every file, and hidden folders."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    for path in list(folder.rglob("*.tsv")):
        for form in HIDDEN:
            path.with_name(form.format(path.name)).write_bytes(b"\0\5\x16\7")
    shutil.copytree(folder / TASK, folder / ".Trash")
    return folder


def test_hidden_files_are_not_data(mac, tiny_data):
    assert find_prefixes(mac, TASK) == find_prefixes(tiny_data, TASK)
    assert check.check_task(mac / TASK)[1:] == check.check_task(tiny_data / TASK)[1:]
    assert [path.name for path in check.task_folders([str(mac)], [])] == sorted(MINI_TASKS)
    configs = [TuneConfig(tasks=[TASK], task_dir=str(folder), model="none") for folder in (mac, tiny_data)]
    assert material(configs[0]) == material(configs[1])


def test_hidden_files_alone_are_no_data(tmp_path):
    folder = tmp_path / TASK
    folder.mkdir()
    (folder / f"._{TASK}_64_42_train.tsv").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"has no <prefix>_train\.tsv"):
        find_prefixes(tmp_path, TASK)
    with pytest.raises(UserError, match=r"has no folder with \.tsv files"):
        check.task_folders([str(tmp_path)], [])
    assert visible([folder / ".a", folder / "a"]) == [folder / "a"]


def test_hidden_domains_are_not_offered(tmp_path):
    for name in ("market", "._market"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_train.tsv").write_text("a\tb\n")
    (tmp_path / "market" / "._x_train.tsv").write_bytes(b"\0")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "mini_bert")
    with pytest.raises(UserError, match=r"Domains in .*: market$"):
        read_domains(tmp_path, ["harbour"], "single", tokenizer, 8, {"train": 0}, {})


def test_names_with_signs_of_patterns(tmp_path):
    task = "a[b]*?é"
    (tmp_path / task).mkdir()
    for name in (f"{task}_1_[2]", f"{task}_full", f"{task}_1_*"):
        (tmp_path / task / f"{name}_train.tsv").write_text("a\tb\n")
    assert find_prefixes(tmp_path, task) == [f"{task}_1_*", f"{task}_1_[2]"]
    assert check.check_task(tmp_path / task)[1] == 3


# ---- names of tasks


@pytest.mark.parametrize("config", [DataConfig, TuneConfig, SimilarityConfig])
def test_a_task_twice(config, monkeypatch):
    monkeypatch.setitem(TASK_LISTS, "twice", ["boolq", "sciq", "boolq"])
    with pytest.raises(UserError, match="--tasks names 'boolq' twice"):
        task_names(config(tasks=["boolq", "boolq"]))
    with pytest.raises(UserError, match="--task_list twice names 'boolq' twice"):
        task_names(config(task_list="twice"))


def test_a_source_twice():
    config = SimilarityConfig(tasks=["boolq", "sciq"], source_tasks=["sciq", "sciq"])
    with pytest.raises(UserError, match="--source_tasks names 'sciq' twice"):
        task_names(config, "source_tasks")
    assert task_names(SimilarityConfig(tasks=["boolq", "sciq"]), "source_tasks") == ["boolq", "sciq"]
    assert task_names(SimilarityConfig(task_list="binary"), "source_tasks") == ["boolq", "mc_taco"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "--task_list own must name at least one task"),
        ("boolq", "must name at least one task, not 'boolq'"),
        (["boolqq"], "--task_list own: unknown task 'boolqq'; did you mean 'boolq'"),
    ],
)
def test_a_list_of_ones_own(tasks, message, monkeypatch):
    monkeypatch.setitem(TASK_LISTS, "own", tasks)
    with pytest.raises(UserError, match=message):
        task_names(DataConfig(task_list="own"))


@pytest.mark.parametrize("metric", ["F2", None])
def test_a_metric_that_is_none(metric, monkeypatch):
    monkeypatch.setitem(METRICS, "boolq", metric)
    with pytest.raises(UserError, match=r"task_list.py: the metric of 'boolq' is unknown"):
        task_names(DataConfig(tasks=["boolq"]))


# ---- lengths


@pytest.mark.parametrize("name", ["max_input_length", "max_output_length"])
def test_lengths_that_leave_nothing(name, tiny_data):
    config = DataConfig(task_dir=str(tiny_data), **{name: 1})
    with pytest.raises(UserError, match=f"--{name} must be at least 2"):
        check_flags(config)


def words(rng: random.Random, size: int) -> str:
    """Text with everything that may matter at a cut: runs of spaces, marks, special tokens, words of any length."""
    parts = [
        "the",
        "harbour",
        "x" * rng.randrange(1, 60),
        "é",
        "e\u0301",
        "<extra_id_0>",
        "<extra_id_7>",
        "\u2028",
        "，",
        "  ",
        "\u3000",
        "\u00a0",
        "ﬁ",
        "日本語",
        "…",
        "a-b",
        "don't",
        "</s>",
        "\u0301",
        "\ufeff",
    ]
    return "".join(rng.choice(parts) + rng.choice([" ", " ", " ", "  ", ""]) for _ in range(size))


TOKENIZERS = {
    "embedded": lambda: load_tokenizer(str(ROOT / "checkpoints" / "mini_t5")),
    "slow": lambda: AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "mini_t5", use_fast=False),
    "bert": lambda: load_tokenizer(str(ROOT / "checkpoints" / "mini_bert")),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_cut_changes_no_token(name):
    tokenizer, rng = TOKENIZERS[name](), random.Random(5)
    texts = [f" [task] {words(rng, rng.choice([3, 40, 400]))}" for _ in range(100)]
    texts += [" " * 500 + "a b", "x" * 700 + " y", "x " + "y" * 700, "", " "]
    for length in (2, 5, 16):
        whole = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        for room in (1, 3, 32):
            assert tokenise(tokenizer, texts, length, room) == whole


def test_tokens_with_spaces_are_never_cut():
    tokenizer = TOKENIZERS["embedded"]()
    tokenizer.add_tokens(["New York"])
    text = "New York " * 200
    assert tokenise(tokenizer, [text], 16, 1) == tokenizer([text], truncation=True, max_length=16)["input_ids"]


def made(model):
    """A tokenizer of `tokenizers` with these pieces, as a T5 has it: every text one word, an end token."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def unigram(rng: random.Random):
    """Pieces of a and b with random scores: which is best may depend on what stands far behind."""
    pieces = [*"ab▁", *{"".join(rng.choices("ab", k=rng.randrange(2, 7))) for _ in range(20)}]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -rng.uniform(1, 9)) for piece in pieces)]
    return made(tokenizers.models.Unigram(vocab, unk_id=0))


def bpe(rng: random.Random):
    """Random merges of a and b."""
    pieces, merges = ["<unk>", "</s>", *"ab▁"], []
    while len(merges) < 20:
        pair = tuple(rng.choices([piece for piece in pieces[2:] if len(piece) < 5], k=2))
        if "".join(pair) not in pieces and "▁" not in pair[1]:
            merges.append(pair)
            pieces.append("".join(pair))
    return made(tokenizers.models.BPE({p: n for n, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True))


@pytest.mark.parametrize("make", [unigram, bpe])
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_within_a_word_changes_no_token(make, seed):
    rng = random.Random(seed)
    tokenizer = make(rng)
    texts = ["".join(rng.choices(["a", "b", "ab" * 9, "日"], [9, 9, 2, 1], k=200)) for _ in range(10)] + ["ab" * 300]
    counting = Counting(tokenizer)
    for length in (2, 7, 30):
        whole = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        for room in (1, 4, 8):
            assert tokenise(counting, texts, length, room) == whole
    assert counting.cut > 20


def test_a_cut_within_a_word_of_marks_and_special_tokens_changes_no_token():
    """Nor with the composing of characters, tokens that are added, and signs of which there is no piece."""
    rng = random.Random(3)
    parts = [
        "ab",
        "e",
        "\u0301",
        "ﬁ",
        "日本語",
        "<extra_id_7>",
        "[MASK]",
        "</s>",
        "…",
        "\u1100\u1161",
        "\u200d",
        "，",
        "q" * 120,
        ".",
    ]
    for tokenizer in (TOKENIZERS["embedded"](), TOKENIZERS["bert"]()):
        texts = ["".join(rng.choices(parts, k=rng.randrange(50, 200))) for _ in range(8)]
        for length in (2, 16, 40):
            whole = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
            for room in (1, 3, 8):
                assert tokenise(tokenizer, texts, length, room) == whole


class Counting:
    """A tokenizer that counts the characters that it is given, and the calls with cut texts."""

    def __init__(self, tokenizer):
        self.tokenizer, self.characters, self.cut = tokenizer, 0, 0
        self.get_vocab, self.backend_tokenizer = tokenizer.get_vocab, tokenizer.backend_tokenizer

    def __call__(self, texts, **flags):
        self.characters += sum(map(len, texts))
        self.cut += len(texts) == 1
        return self.tokenizer(texts, **flags)


@pytest.mark.parametrize("word", ["word ", "word", "1.", "=ab9/"])
def test_of_10_megabytes_little_is_tokenised(tiny_data, tmp_path, word):
    shutil.copytree(tiny_data / TASK, tmp_path / TASK)
    path = split_path(tmp_path, TASK, f"{TASK}_64_42", "dev")
    with path.open("a", encoding="utf-8") as file:
        file.write(word * 2_000_000 + "\tanswer " + word * 2_000_000 + "\n")
    counting = Counting(TOKENIZERS["embedded"]())
    encoded = load_split(counting, DataConfig(task_dir=str(tmp_path)), TASK, f"{TASK}_64_42", "dev")
    assert (len(encoded.inputs[-1]), len(encoded.outputs[-1][0])) == (512, 64)
    assert counting.characters < (50_000 if " " in word else 500_000)
