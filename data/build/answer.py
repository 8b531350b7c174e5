"""Entries of the tasks whose output is a free text: reading, long answers, closed-book questions, summaries."""

from data.build.entry import Entry, Mapped, Row, nested, squeeze


def _adversarialqa(row: Row) -> Mapped:
    answers = nested(row["answers"])["text"]
    return answers and (f"question: {row['question']} context: {row['context']}", answers)


def _hotpot_qa(row: Row) -> Mapped:
    """The context is the paragraphs that a supporting fact names, whole and in the row's order."""
    needed = set(nested(row["supporting_facts"])["title"])
    context = nested(row["context"])
    paragraphs = zip(context["title"], context["sentences"], strict=True)
    text = " ".join("".join(sentences) for title, sentences in paragraphs if title in needed)
    return f"question: {row['question']} context: {text}", row["answer"]


def _record(row: Row) -> Mapped:
    """CrossFit keeps the first of the acceptable entities."""
    answers = nested(row["answers"])
    return answers and (f"question: {row['query']} context: {row['passage']}", answers[0])


def _eli5(row: Row) -> Mapped:
    """All answers of the thread are acceptable."""
    answers = nested(row["answers"])["text"]
    return answers and (squeeze(f"{row['title']} [SEP] {row['selftext']}"), [squeeze(answer) for answer in answers])


def _conceptnet(row: Row) -> Mapped:
    return row["masked_sentence"], row["obj_label"]


def _google_re(row: Row) -> Mapped:
    return row["template"].replace("[X]", row["sub_label"]).replace("[Y]", "[MASK]"), row["obj_label"]


def _numer_sense(row: Row) -> Mapped:
    return row["sentence"].replace("<mask>", "[MASK]"), row["target"]


def _search_qa(row: Row) -> Mapped:
    """CrossFit has no space before "category:"."""
    return f"question: {row['question']}category: {row['category']}", row["answer"]


def _web_questions(row: Row) -> Mapped:
    return row["question"], nested(row["answers"])


def _samsum(row: Row) -> Mapped:
    return f"summarize: {squeeze(row['dialogue'])}", squeeze(row["summary"])


def _xsum(row: Row) -> Mapped:
    return f"summarize: {row['document']}", row["summary"]


_ELI5 = ("title", "selftext", "answers")
_REDDIT = "not stated (Reddit's terms apply)"

ENTRIES = (
    Entry(
        "adversarialqa",
        "UCLNLP/adversarial_qa",
        ("question", "context", "answers"),
        _adversarialqa,
        "CC BY-SA 4.0",
        False,
        config="adversarialQA",
    ),
    Entry(
        "hotpot_qa",
        "hotpotqa/hotpot_qa",
        ("question", "answer", "supporting_facts", "context"),
        _hotpot_qa,
        "CC BY-SA 4.0",
        False,
        config="distractor",
        scripted=True,
    ),
    Entry(
        "superglue-record",
        "aps/super_glue",
        ("passage", "query", "answers"),
        _record,
        config="record",
        scripted=True,
        shares_hub=True,
        licence="not stated (news articles, terms of their publishers)",
    ),
    Entry(
        "eli5-askh",
        "Pavithree/askHistorians",
        _ELI5,
        _eli5,
        _REDDIT,
        test_share=0.1,
        note="ELI5 left the hub in 2023; a third party's copy of its AskHistorians part",
    ),
    Entry(
        "eli5-asks",
        "Pavithree/askScience",
        _ELI5,
        _eli5,
        _REDDIT,
        test_share=0.1,
        note="ELI5 left the hub in 2023; a third party's copy of its askscience part",
    ),
    Entry(
        "eli5-eli5",
        "dany0407/eli5_category",
        _ELI5,
        _eli5,
        _REDDIT,
        test="validation1",
        test_share=0.1,
        note="ELI5 left the hub in 2023; ELI5-Category has later threads of the same forum",
    ),
    Entry(
        "lama-conceptnet",
        "facebook/lama",
        ("masked_sentence", "obj_label"),
        _conceptnet,
        "CC BY-NC 4.0",
        True,
        config="conceptnet",
        test="",
        scripted=True,
        shares_hub=True,
    ),
    Entry(
        "lama-google_re",
        "facebook/lama",
        ("template", "sub_label", "obj_label"),
        _google_re,
        "CC BY-NC 4.0",
        True,
        config="google_re",
        test="",
        scripted=True,
        shares_hub=True,
    ),
    Entry("numer_sense", "INK-USC/numer_sense", ("sentence", "target"), _numer_sense, "MIT", False, test=""),
    Entry(
        "search_qa",
        "kyunghyuncho/search_qa",
        ("question", "category", "answer"),
        _search_qa,
        "not stated",
        config="train_test_val",
        scripted=True,
    ),
    Entry(
        "web_questions",
        "stanfordnlp/web_questions",
        ("question", "answers"),
        _web_questions,
        "CC BY 4.0",
        False,
        test="",
    ),
    Entry(
        "samsum",
        "knkarthick/samsum",
        ("dialogue", "summary"),
        _samsum,
        "CC BY-NC-ND 4.0",
        True,
        note="the publisher's own copy left the hub in 2025; a third party's copy of the same files",
    ),
    Entry("xsum", "EdinburghNLP/xsum", ("document", "summary"), _xsum, "not stated (BBC articles)", scripted=True),
)
