"""Entries of the 19 multiple-choice tasks: the input ends in lettered options, the output is the right option's text."""

from data.build.entry import Entry, Mapped, Row, choices, nested, options, pick, shuffled, squeeze


def _keyed(question: str, key: str = "answerKey"):
    """Rows with a `choices` column and the label of the right one."""

    def convert(row: Row) -> Mapped:
        labels, texts = choices(row["choices"])
        if row[key] not in labels:
            return None
        return f"{row[question]}{options(texts, labels)}", texts[labels.index(row[key])]

    return convert


def _commonsense_qa(row: Row) -> Mapped:
    return _keyed("question")({**row, "question": squeeze(row["question"])})


def _openbookqa(row: Row) -> Mapped:
    """CrossFit letters the options itself; the data set's own labels are the same letters."""
    labels, texts = choices(row["choices"])
    if row["answerKey"] not in labels:
        return None
    return f"{row['question_stem']}{options(texts)}", texts[labels.index(row["answerKey"])]


def _codah(row: Row) -> Mapped:
    texts = nested(row["candidate_answers"])
    return f"{row['question_propmt']}{options(texts)}", pick(texts, row["correct_answer_idx"])


def _cosmos_qa(row: Row) -> Mapped:
    """Two spaces stand before (A), since CrossFit's separator and its option both bring one."""
    texts = [row[f"answer{number}"] for number in range(4)]
    answer = pick(texts, row["label"])
    return answer and (f"{row['question']} [SEP] {row['context']} [SEP] {options(texts)}", answer)


def _dream(row: Row) -> Mapped:
    """Two spaces before (A), as in cosmos_qa."""
    dialogue, texts = " ".join(nested(row["dialogue"])), nested(row["choice"])
    return f"{row['question']} [SEP] {dialogue} [SEP] {options(texts)}", row["answer"]


def _hellaswag(row: Row) -> Mapped:
    texts = nested(row["endings"])
    answer = pick(texts, row["label"])
    return answer and (f"{row['ctx']}{options(texts)}", answer)


def _quail(row: Row) -> Mapped:
    """No spaces around the letters, as CrossFit has it."""
    texts = nested(row["answers"])
    listed = "".join(f"({letter}){text}" for letter, text in zip("ABCD", texts, strict=False))
    return f"{row['question']}{listed} [SEP] {row['context']}", pick(texts, row["correct_answer_id"])


def _quarel(row: Row) -> Mapped:
    """The question brings its own "(A) x or (B) y"; the answer is what follows the letter."""
    question = row["question"]
    first, second = question.find("(A)"), question.find("(B)")
    parts = question[first + 3 : second].strip().removesuffix(" or"), question[second + 3 :]
    answer = pick(parts, row["answer_index"]) if 0 <= first < second else None
    return answer and (question, answer.strip())


def _quartz_with_knowledge(row: Row) -> Mapped:
    """Question and paragraph are joined without a space, as CrossFit does."""
    return _keyed("question")({**row, "question": row["question"] + row["para"]})


def _race(row: Row) -> Mapped:
    texts = nested(row["options"])
    answer = texts["ABCD".index(row["answer"])] if row["answer"] in ("A", "B", "C", "D") else None
    return answer and (f"{row['question']}{options(texts)} [SEP] {row['article']}", answer)


def _sciq(row: Row) -> Mapped:
    """The data set has no order of options: here each question has its own fixed one. Rows without support are left out."""
    if not row["support"].strip():
        return None
    answer = row["correct_answer"]
    texts = shuffled([row["distractor1"], row["distractor2"], row["distractor3"], answer], row["question"])
    return f"{row['question']}{options(texts)} [SEP] {row['support']}", answer


def _copa(row: Row) -> Mapped:
    texts = [row["choice1"], row["choice2"]]
    answer = pick(texts, row["label"])
    return answer and (f"{row['premise']}{options(texts)}", answer)


def _swag(row: Row) -> Mapped:
    texts = [row[f"ending{number}"] for number in range(4)]
    answer = pick(texts, row["label"])
    return answer and (f"{row['startphrase']}{options(texts)}", answer)


def _wino_grande(row: Row) -> Mapped:
    texts = [row["option1"], row["option2"]]
    answer = pick(["", *texts], row["answer"])
    return answer and (f"{row['sentence']}{options(texts)}", answer)


def _wiqa(row: Row) -> Mapped:
    labels, texts = choices(row["choices"])
    if row["answer_label_as_choice"] not in labels:
        return None
    paragraph = " ".join(nested(row["question_para_step"]))
    answer = texts[labels.index(row["answer_label_as_choice"])]
    return f"{row['question_stem']}{options(texts)} [SEP] {paragraph}", answer


def _race_entry(level: str) -> Entry:
    return Entry(
        f"race-{level}",
        "ehovy/race",
        ("article", "question", "options", "answer"),
        _race,
        config=level,
        shares_hub=True,
        licence="research only, no commercial use",
        non_commercial=True,
    )


_KEYED = ("question", "choices", "answerKey")

ENTRIES = (
    Entry("ai2_arc", "allenai/ai2_arc", _KEYED, _keyed("question"), "CC BY-SA 4.0", False, config="ARC-Challenge"),
    Entry(
        "codah",
        "jaredfern/codah",
        ("question_propmt", "candidate_answers", "correct_answer_idx"),
        _codah,
        config="fold_0",
        licence="ODC-By 1.0",
        non_commercial=False,
    ),
    Entry("commonsense_qa", "tau/commonsense_qa", _KEYED, _commonsense_qa, "MIT", False),
    Entry(
        "cosmos_qa",
        "allenai/cosmos_qa",
        ("context", "question", "answer0", "answer1", "answer2", "answer3", "label"),
        _cosmos_qa,
        "CC BY 4.0",
        False,
        scripted=True,
    ),
    Entry(
        "dream",
        "dataset-org/dream",
        ("dialogue", "question", "choice", "answer"),
        _dream,
        scripted=True,
        licence="research only, no commercial use",
        non_commercial=True,
    ),
    Entry("hellaswag", "Rowan/hellaswag", ("ctx", "endings", "label"), _hellaswag, "MIT", False),
    Entry(
        "openbookqa",
        "allenai/openbookqa",
        ("question_stem", "choices", "answerKey"),
        _openbookqa,
        config="main",
        licence="not stated (code: Apache-2.0)",
    ),
    Entry("qasc", "allenai/qasc", _KEYED, _keyed("question"), "CC BY 4.0", False),
    Entry(
        "quail",
        "textmachinelab/quail",
        ("context", "question", "answers", "correct_answer_id"),
        _quail,
        "CC BY-NC-SA 4.0",
        True,
        config="quail",
    ),
    Entry("quarel", "community-datasets/quarel", ("question", "answer_index"), _quarel, "CC BY 4.0", False),
    Entry("quartz-no_knowledge", "allenai/quartz", _KEYED, _keyed("question"), "CC BY 4.0", False),
    Entry("quartz-with_knowledge", "allenai/quartz", (*_KEYED, "para"), _quartz_with_knowledge, "CC BY 4.0", False),
    _race_entry("high"),
    _race_entry("middle"),
    Entry(
        "sciq",
        "allenai/sciq",
        ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
        _sciq,
        "CC BY-NC 3.0",
        True,
    ),
    Entry(
        "superglue-copa",
        "aps/super_glue",
        ("premise", "choice1", "choice2", "label"),
        _copa,
        "BSD 2-Clause",
        False,
        config="copa",
        scripted=True,
        shares_hub=True,
    ),
    Entry(
        "swag",
        "allenai/swag",
        ("startphrase", "ending0", "ending1", "ending2", "ending3", "label"),
        _swag,
        "not stated (code: MIT)",
        config="regular",
        scripted=True,
    ),
    Entry(
        "wino_grande",
        "allenai/winogrande",
        ("sentence", "option1", "option2", "answer"),
        _wino_grande,
        "CC BY (code: Apache-2.0)",
        False,
        config="winogrande_xl",
    ),
    Entry(
        "wiqa",
        "allenai/wiqa",
        ("question_stem", "question_para_step", "choices", "answer_label_as_choice"),
        _wiqa,
        "CC BY 4.0",
        False,
        scripted=True,
    ),
)
