"""Entries of the classification tasks: the output is one of a few label words, and sampling is balanced per class."""

from collections.abc import Callable

from data.build.entry import Entry, Mapped, Row, digest, squeeze


def _pair(first: str, second: str, names: tuple[str, str], label: str = "label") -> Callable[[Row], Mapped]:
    """ "first: ... [SEP] second: ..." of two columns."""
    return lambda row: (f"{first}: {row[names[0]]} [SEP] {second}: {row[names[1]]}", row[label])


def _plain(column: str, label: str = "label") -> Callable[[Row], Mapped]:
    return lambda row: (row[column], row[label])


def _tweet(row: Row) -> Mapped:
    return squeeze(row["text"]), row["label"]


def _mc_taco(row: Row) -> Mapped:
    return f"{row['sentence']} [SEP] {row['question']} [SEP] {row['answer']}", row["label"]


def _liar(row: Row) -> Mapped:
    return f"statement: {row['statement']} [SEP] speaker: {row['speaker']} [SEP] context: {row['context']}", row[
        "label"
    ]


def _tab_fact(row: Row) -> Mapped:
    """The table's rows are separated by "[n]", its cells by "#"."""
    table = row["table_text"].replace("\n", " [n] ")
    caption = row["table_caption"]
    return f"statement: {row['statement']} [SEP] table_caption: {caption} [SEP] table_text: {table}", row["label"]


def _blimp(row: Row) -> Mapped:
    """Which sentence comes first is a coin toss, fixed for each pair."""
    good, bad = row["sentence_good"], row["sentence_bad"]
    label = digest("coin", good, bad) % 2
    first, second = (good, bad) if label == 0 else (bad, good)
    return f"sentence 1: {first} [SEP] sentence 2: {second}", label


def _blimp_entry(paradigm: str) -> Entry:
    return Entry(
        f"blimp-{paradigm}",
        "nyu-mll/blimp",
        ("sentence_good", "sentence_bad"),
        _blimp,
        "CC BY 4.0",
        False,
        config=paradigm,
        test="",
        shares_hub=True,
        labels=("sentence 1", "sentence 2"),
    )


def _tweets(subset: str, *labels: str) -> Entry:
    return Entry(
        f"tweet_eval-{subset}",
        "cardiffnlp/tweet_eval",
        ("text", "label"),
        _tweet,
        config=subset,
        labels=labels,
        shares_hub=True,
        licence="not stated (terms of Twitter and of the original data apply)",
    )


_NLI = ("entailment", "neutral", "contradiction")

ENTRIES = (
    Entry(
        "boolq",
        "google/boolq",
        ("question", "passage", "answer"),
        _pair("question", "context", ("question", "passage"), "answer"),
        "CC BY-SA 3.0",
        False,
        labels=("no", "yes"),
    ),
    Entry(
        "mc_taco",
        "CogComp/mc_taco",
        ("sentence", "question", "answer", "label"),
        _mc_taco,
        "not stated",
        train="validation",
        test="",
        labels=("no", "yes"),
        scripted=True,
    ),
    Entry(
        "amazon_polarity",
        "fancyzhx/amazon_polarity",
        ("title", "content", "label"),
        _pair("title", "content", ("title", "content")),
        "Apache-2.0 (of the hub's copy)",
        False,
        test="test",
        test_lines=1000,
        labels=("negative", "positive"),
        note="CrossFit draws its 1,000 test lines from the train split, here they are of the test split",
    ),
    Entry(
        "financial_phrasebank",
        "takala/financial_phrasebank",
        ("sentence", "label"),
        _plain("sentence"),
        "CC BY-NC-SA 3.0",
        True,
        config="sentences_allagree",
        test="",
        labels=("negative", "neutral", "positive"),
        scripted=True,
    ),
    Entry(
        "anli",
        "facebook/anli",
        ("premise", "hypothesis", "label"),
        _pair("premise", "hypothesis", ("premise", "hypothesis")),
        "CC BY-NC 4.0",
        True,
        train="train_r1",
        test="dev_r1",
        labels=_NLI,
    ),
    Entry(
        "scitail",
        "allenai/scitail",
        ("sentence1", "sentence2", "gold_label"),
        _pair("sentence 1", "sentence 2", ("sentence1", "sentence2"), "gold_label"),
        "not stated",
        config="snli_format",
        labels=("entailment", "neutral"),
        scripted=True,
    ),
    Entry(
        "climate_fever",
        "tdiggelm/climate_fever",
        ("claim", "claim_label"),
        _plain("claim", "claim_label"),
        "not stated",
        train="test",
        test="",
        labels=("Supports", "Refutes", "Not enough info", "Disputed"),
    ),
    Entry(
        "health_fact",
        "ImperialCollegeLondon/health_fact",
        ("claim", "label"),
        _plain("claim"),
        "MIT",
        False,
        labels=("false", "mixture", "true", "unproven"),
        scripted=True,
    ),
    Entry(
        "liar",
        "ucsbnlp/liar",
        ("statement", "speaker", "context", "label"),
        _liar,
        "not stated",
        labels=("false", "half-true", "mostly-true", "true", "barely-true", "pants-fire"),
        scripted=True,
    ),
    Entry(
        "tab_fact",
        "wenhu/tab_fact",
        ("statement", "table_caption", "table_text", "label"),
        _tab_fact,
        "CC BY 4.0",
        False,
        config="tab_fact",
        labels=("refuted", "entailed"),
        scripted=True,
    ),
    _tweets("offensive", "non-offensive", "offensive"),
    _tweets("sentiment", "negative", "neutral", "positive"),
    _tweets("irony", "non-irony", "irony"),
    Entry(
        "glue-mrpc",
        "nyu-mll/glue",
        ("sentence1", "sentence2", "label"),
        _pair("sentence 1", "sentence 2", ("sentence1", "sentence2")),
        "Microsoft Research licence",
        config="mrpc",
        shares_hub=True,
        labels=("not_equivalent", "equivalent"),
    ),
    Entry(
        "glue-qqp",
        "nyu-mll/glue",
        ("question1", "question2", "label"),
        _pair("question 1", "question 2", ("question1", "question2")),
        "Quora's terms, no commercial use",
        True,
        config="qqp",
        shares_hub=True,
        labels=("not_duplicate", "duplicate"),
    ),
    Entry(
        "medical_questions_pairs",
        "curaihealth/medical_questions_pairs",
        ("question_1", "question_2", "label"),
        _pair("question 1", "question 2", ("question_1", "question_2")),
        "not stated",
        test="",
        labels=("Similar", "Dissimilar"),
        note="label 1, the same meaning, is written Dissimilar: CrossFit's mistake, kept",
    ),
    _blimp_entry("ellipsis_n_bar_1"),
    _blimp_entry("irregular_past_participle_adjectives"),
    _blimp_entry("sentential_negation_npi_scope"),
)
