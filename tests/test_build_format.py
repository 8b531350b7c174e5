"""The entries against real CrossFit lines: a line is taken apart into the row it came from, and its entry must rebuild it.

So separators, prefixes, spaces, option letters and label words are compared on the same row, for each task that is there.
"""

import functools
import re

import pytest

from data.build.check import check_task
from data.build.entry import LETTERS
from data.build.registry import ENTRIES
from pewe.cli import ROOT
from pewe.data import Example, read_examples

REAL = ROOT.parent / "shared" / "data" / "crossfit"
TASKS = sorted(folder.name for folder in REAL.iterdir() if folder.is_dir()) if REAL.is_dir() else []
SEP = " [SEP] "

pytestmark = pytest.mark.skipif(not TASKS, reason="no real CrossFit data in ../shared/data/crossfit")


def split_options(text: str, output: str, mark: str = " ({}) ") -> tuple[str, list[str]]:
    """The text before the options, and the options, at the last "(A)" after which all letters follow in order."""
    head, _, tail = text.rpartition(mark.format("A"))
    texts = []
    for letter in LETTERS[1:]:
        option, found, rest = tail.partition(mark.format(letter))
        if not found:
            break
        texts.append(option)
        tail = rest
    texts.append(tail)
    assert output in map(str.strip, texts), f"the answer {output!r} is none of {texts}"
    return head, texts


def place(texts: list[str], output: str) -> int:
    """The number of the right option; the output has no space at its ends, the option may."""
    return [text.strip() for text in texts].index(output)


def choice(question: str, key: str = "answerKey"):
    """Question, then options: a row with a `choices` column."""

    def row(text: str, outputs: tuple[str, ...]) -> dict:
        head, texts = split_options(text, outputs[0])
        labels = list(LETTERS[: len(texts)])
        return {question: head, "choices": {"label": labels, "text": texts}, key: labels[place(texts, outputs[0])]}

    return row


def numbered(head_name: str, names: list[str], first: int = 0, label: str = "label"):
    """Text, then options, each option in a column of its own."""

    def row(text: str, outputs: tuple[str, ...]) -> dict:
        head, texts = split_options(text, outputs[0])
        return {head_name: head, **dict(zip(names, texts, strict=True)), label: place(texts, outputs[0]) + first}

    return row


def then_text(inner, column: str, join=lambda text: text):
    """Options first, then the passage behind a separator."""

    def row(text: str, outputs: tuple[str, ...]) -> dict:
        head, _, passage = text.partition(SEP)
        return inner(head, outputs) | {column: join(passage)}

    return row


def fields(pattern: str, output: str = "label"):
    """Columns that a pattern names, and the output as it stands."""

    def row(text: str, outputs: tuple[str, ...]) -> dict:
        return re.fullmatch(pattern, text).groupdict() | {output: outputs[0]}

    return row


def cosmos(text: str, outputs: tuple[str, ...]) -> dict:
    head, texts = split_options(text, outputs[0])
    question, context = head.removesuffix(" [SEP] ").split(SEP)
    row = {f"answer{number}": option for number, option in enumerate(texts)}
    return row | {"question": question, "context": context, "label": place(texts, outputs[0])}


def dream(text: str, outputs: tuple[str, ...]) -> dict:
    head, texts = split_options(text, outputs[0])
    question, dialogue = head.removesuffix(" [SEP] ").split(SEP)
    return {"question": question, "dialogue": [dialogue], "choice": texts, "answer": outputs[0]}


def codah(text: str, outputs: tuple[str, ...]) -> dict:
    head, texts = split_options(text, outputs[0])
    return {"question_propmt": head, "candidate_answers": texts, "correct_answer_idx": place(texts, outputs[0])}


def hellaswag(text: str, outputs: tuple[str, ...]) -> dict:
    head, texts = split_options(text, outputs[0])
    return {"ctx": head, "endings": texts, "label": str(place(texts, outputs[0]))}


def quail(text: str, outputs: tuple[str, ...]) -> dict:
    head, _, context = text.partition(SEP)
    question, texts = split_options(head, outputs[0], "({})")
    return {"question": question, "answers": texts, "correct_answer_id": place(texts, outputs[0]), "context": context}


def quarel(text: str, outputs: tuple[str, ...]) -> dict:
    _, texts = split_options(text, outputs[0])
    return {"question": text, "answer_index": place(texts, outputs[0])}


def quartz_with_knowledge(text: str, outputs: tuple[str, ...]) -> dict:
    row = choice("question")(text, outputs)
    middle = len(row["question"]) // 2  # the border is not marked, and need not be known
    return row | {"question": row["question"][:middle], "para": row["question"][middle:]}


def race(text: str, outputs: tuple[str, ...]) -> dict:
    head, _, article = text.partition(SEP)
    question, texts = split_options(head, outputs[0])
    return {"question": question, "options": texts, "answer": LETTERS[place(texts, outputs[0])], "article": article}


def sciq(text: str, outputs: tuple[str, ...]) -> dict:
    head, _, support = text.partition(SEP)
    question, texts = split_options(head, outputs[0])
    del texts[place(texts, outputs[0])]
    wrong = {f"distractor{number}": option for number, option in enumerate(texts, start=1)}
    return wrong | {"question": question, "correct_answer": outputs[0], "support": support}


def wiqa(text: str, outputs: tuple[str, ...]) -> dict:
    head, _, steps = text.partition(SEP)
    return choice("question_stem", "answer_label_as_choice")(head, outputs) | {"question_para_step": [steps]}


def hotpot(text: str, outputs: tuple[str, ...]) -> dict:
    row = fields("question: (?P<question>.*?) context: (?P<text>.*)", "answer")(text, outputs)
    return row | {
        "context": {"title": ["t"], "sentences": [[row["text"]]]},
        "supporting_facts": {"title": ["t"], "sent_id": [0]},
    }


def record(text: str, outputs: tuple[str, ...]) -> dict:
    row = fields("question: (?P<query>.*?) context: (?P<passage>.*)", "answer")(text, outputs)
    return row | {"answers": list(outputs)}


def eli5(text: str, outputs: tuple[str, ...]) -> dict:
    title, _, selftext = text.partition(" [SEP]")
    return {"title": title, "selftext": selftext.strip(), "answers": {"text": list(outputs)}}


def google_re(text: str, outputs: tuple[str, ...]) -> dict:
    subject, rest = re.fullmatch(r"(.*)( (?:was born in|died in|\(born) \[MASK\].*)", text).groups()
    return {"sub_label": subject, "template": "[X]" + rest.replace("[MASK]", "[Y]"), "obj_label": outputs[0]}


def table(text: str, outputs: tuple[str, ...]) -> dict:
    pattern = r"statement: (?P<statement>.*) \[SEP\] table_caption: (?P<table_caption>.*?) ?\[SEP\] table_text: (?P<table_text>.*)"
    row = fields(pattern)(text, outputs)
    return row | {"table_text": re.sub(r" \[n\]( |$)", "\n", row["table_text"])}


def blimp(text: str, outputs: tuple[str, ...]) -> dict:
    sentences = re.fullmatch(r"sentence 1: (.*) \[SEP\] sentence 2: (.*)", text).groups()
    good = ("sentence 1", "sentence 2").index(outputs[0])
    return {"sentence_good": sentences[good], "sentence_bad": sentences[1 - good]}


def pair(first: str, second: str, names: tuple[str, str], label: str = "label"):
    return fields(rf"{first}: (?P<{names[0]}>.*?) ?\[SEP\] {second}: (?P<{names[1]}>.*)", label)


ROW_OF = {
    "hotpot_qa": hotpot,
    "superglue-record": record,
    **{task: choice("question") for task in ("ai2_arc", "commonsense_qa", "qasc", "quartz-no_knowledge")},
    "openbookqa": choice("question_stem"),
    "codah": codah,
    "cosmos_qa": cosmos,
    "dream": dream,
    "hellaswag": hellaswag,
    "quail": quail,
    "quarel": quarel,
    "quartz-with_knowledge": quartz_with_knowledge,
    "race-high": race,
    "race-middle": race,
    "sciq": sciq,
    "superglue-copa": numbered("premise", ["choice1", "choice2"]),
    "swag": numbered("startphrase", ["ending0", "ending1", "ending2", "ending3"]),
    "wino_grande": numbered("sentence", ["option1", "option2"], 1, "answer"),
    "wiqa": wiqa,
    "boolq": pair("question", "context", ("question", "passage"), "answer"),
    "mc_taco": fields(r"(?P<sentence>.*) \[SEP\] (?P<question>.*) \[SEP\] (?P<answer>.*)"),
    "eli5-eli5": eli5,
    "lama-conceptnet": fields("(?P<masked_sentence>.*)", "obj_label"),
    "lama-google_re": google_re,
    "numer_sense": lambda text, outputs: {"sentence": text.replace("[MASK]", "<mask>"), "target": outputs[0]},
    "search_qa": fields("question: (?P<question>.*)category: (?P<category>.*)", "answer"),
    "web_questions": lambda text, outputs: {"question": text, "answers": list(outputs)},
    "amazon_polarity": pair("title", "content", ("title", "content")),
    "financial_phrasebank": fields("(?P<sentence>.*)"),
    "anli": pair("premise", "hypothesis", ("premise", "hypothesis")),
    "scitail": pair("sentence 1", "sentence 2", ("sentence1", "sentence2"), "gold_label"),
    "climate_fever": fields("(?P<claim>.*)", "claim_label"),
    "health_fact": fields("(?P<claim>.*)"),
    "liar": fields(r"statement: (?P<statement>.*) \[SEP\] speaker: (?P<speaker>.*) \[SEP\] context: ?(?P<context>.*)"),
    "tab_fact": table,
    **{f"tweet_eval-{name}": fields("(?P<text>.*)") for name in ("offensive", "sentiment", "irony")},
    "glue-mrpc": pair("sentence 1", "sentence 2", ("sentence1", "sentence2")),
    "glue-qqp": pair("question 1", "question 2", ("question1", "question2")),
    "medical_questions_pairs": pair("question 1", "question 2", ("question_1", "question_2")),
    "samsum": fields("summarize: (?P<dialogue>.*)", "summary"),
    "xsum": fields("summarize: (?P<document>.*)", "summary"),
    **{task: blimp for task in ENTRIES if task.startswith("blimp-")},
}


@functools.cache
def real_lines(task: str) -> list[Example]:
    """All few-shot train and dev lines and the first 100 test lines."""
    stem = REAL / task / f"{task}_64_42"
    train, dev, test = (read_examples(stem.with_name(f"{stem.name}_{split}.tsv")) for split in ("train", "dev", "test"))
    return [*train, *dev, *test[:100]]


def alike(task: str, example: Example) -> tuple:
    """What must be equal; where the order is a matter of chance, the same for both orders."""
    if task == "sciq":
        head, texts = split_options(example.input.partition(SEP)[0], example.outputs[0])
        return head, sorted(texts), example.input.partition(SEP)[1:], example.outputs
    if task.startswith("blimp-"):
        row = blimp(example.input, example.outputs)
        return row["sentence_good"], row["sentence_bad"]
    return example.input, example.outputs


@pytest.mark.parametrize("task", TASKS)
def test_the_entry_rebuilds_real_lines(task):
    for example in real_lines(task):
        rebuilt = ENTRIES[task].line(ROW_OF[task](example.input, example.outputs))
        assert rebuilt is not None
        assert alike(task, Example(*rebuilt)) == alike(task, example)


@pytest.mark.parametrize("task", [task for task in TASKS if ENTRIES[task].labels])
def test_label_words_are_those_of_the_real_files(task):
    words = {example.outputs[0] for example in read_examples(REAL / task / f"{task}_64_42_train.tsv")}
    assert words == set(ENTRIES[task].labels)


@pytest.mark.parametrize("task", TASKS)
def test_the_checking_command_passes_the_real_folders(task):
    findings, files, lines = check_task(REAL / task)
    assert [str(finding) for finding in findings if finding.fault] == []
    assert files >= 3 and lines > 100
