"""Every entry of data/build on rows in the hub's schema, with our own sentences: the line is CrossFit's, letter by letter."""

import importlib
import json

import pytest

import task_list
from data.build import registry
from data.build.choice import ENTRIES as CHOICE
from data.build.entry import Entry, choices, clean, label_word, options, pick, squeeze
from data.build.registry import ENTRIES, selected
from pewe.errors import UserError
from task_list import METRICS, quan_task

LETTERED = {"label": ["A", "B", "C", "D"]}


def keyed(question, texts, key, **more):
    """A row with a `choices` column."""
    labels = [chr(ord("A") + place) for place in range(len(texts))]
    return {"id": "x", "question": question, "choices": {"text": texts, "label": labels}, "answerKey": key, **more}


def thread(number):
    """A row of ELI5."""
    answers = {"a_id": ["a", "b"], "text": [f"Pump {number} pushes  it.", "Gravity\nhelps."], "score": [3, 2]}
    return {
        "q_id": str(number),
        "title": f"How does water reach floor {number}?",
        "selftext": "I live\nhigh up.",
        "subreddit": "x",
        "answers": answers,
    }


def blimp(number):
    """A row of BLiMP."""
    good, bad = f"Those {number} dogs bark.", f"Those {number} dogs barks."
    return {"sentence_good": good, "sentence_bad": bad, "field": "syntax", "UID": "x", "pairID": str(number)}


def tweet(words):
    """Rows of TweetEval with one label after the other."""
    return lambda number: {"text": f"@user bus {number}  is late\nagain", "label": number % words}


def race(number):
    """A row of RACE."""
    return {
        "example_id": f"{number}.txt",
        "article": f"Ana has {number} hens.\nThey lay eggs.",
        "question": "Ana keeps _ .",
        "options": ["hens", "cows", "pigs", "bees"],
        "answer": "A",
    }


def quartz(number):
    """A row of QuaRTz."""
    return keyed(
        f"Kim walks {number} miles more, so Kim gets", ["weaker", "stronger"], "B", para="Walking makes one strong."
    )


def hotpot(number):
    """A row of HotpotQA, with one paragraph that no supporting fact names."""
    titles = ["Mill", "Lake", "Hill"]
    sentences = [[f"Mill {number} is old.", " It is of stone."], ["The lake is cold."], ["The hill is near the mill."]]
    facts = {"title": ["Mill", "Hill"], "sent_id": [0, 0]}
    return {
        "id": str(number),
        "question": f"What is near mill {number}?",
        "answer": "the hill",
        "type": "bridge",
        "level": "easy",
        "supporting_facts": facts,
        "context": {"title": titles, "sentences": sentences},
    }


def liar(number):
    """A row of LIAR."""
    return {
        "id": f"{number}.json",
        "label": number % 6,
        "statement": f"The town has {number} bridges.",
        "subject": "roads",
        "speaker": "ana-lind",
        "job_title": "",
        "state_info": "",
        "party_affiliation": "",
        "context": "a speech",
    }


def claim(number):
    """A row of Climate-FEVER."""
    return {"claim_id": str(number), "claim": f"Glacier {number} grew.", "claim_label": number % 4, "evidences": []}


def table(number):
    """A row of TabFact."""
    return {
        "id": number,
        "table_id": "t",
        "table_text": f"name#goals\nana#{number}\nbo#1",
        "table_caption": "cup 1990",
        "statement": f"ana shot {number} goals",
        "label": number % 2,
    }


def wiqa(number):
    """A row of WIQA."""
    return {
        "question_stem": f"suppose {number} clouds come, how will it affect more rain.",
        "answer_label": "more",
        "question_para_step": ["Water rises", "It falls"],
        "answer_label_as_choice": "A",
        "metadata_path_len": 1,
        "choices": {"text": ["more", "less", "no effect"], "label": ["A", "B", "C"]},
    }


def plain(columns, **fixed):
    """Rows whose columns are texts with the row's number in place of #."""
    return lambda number: {name: text.replace("#", str(number)) for name, text in columns.items()} | fixed


def labelled(columns, classes, label="label"):
    """Rows as those of `plain`, with one label after the other."""
    return lambda number: (
        {name: text.replace("#", str(number)) for name, text in columns.items()} | {label: number % classes}
    )


SENTENCES = {"sentence1": "Ana has # cats.", "sentence2": "Ana owns # cats."}
QUESTIONS = "question 1: Who has 0 cats? [SEP] question 2: Who owns 0 cats?"
# task: (row of a number, input of row 0, outputs of row 0)
ROWS = {
    "adversarialqa": (
        lambda n: (
            {
                "id": str(n),
                "title": "t",
                "context": f"Ana sold {n} eggs to Bo.",
                "question": "Who bought eggs?",
                "answers": {"text": ["Bo"], "answer_start": [20]},
                "metadata": {"split": "train"},
            }
            | {"question": f"Who bought {n} eggs?"}
        ),
        "question: Who bought 0 eggs? context: Ana sold 0 eggs to Bo.",
        ["Bo"],
    ),
    "hotpot_qa": (
        hotpot,
        "question: What is near mill 0? context: Mill 0 is old. It is of stone. The hill is near the mill.",
        ["the hill"],
    ),
    "superglue-record": (
        lambda n: {
            "passage": f"Bo met Ana at {n} o'clock.\n@highlight\nThey ate.",
            "query": f"At {n}, @placeholder came.",
            "entities": ["Bo", "Ana"],
            "answers": ["Ana", "Bo"],
            "idx": {"passage": n, "query": n},
        },
        "question: At 0, @placeholder came. context: Bo met Ana at 0 o'clock. @highlight They ate.",
        ["Ana"],
    ),
    "ai2_arc": (
        lambda n: keyed(f"Which of {n} things melts?", ["ice", "iron", "wood", "sand"], "A"),
        "Which of 0 things melts? (A) ice (B) iron (C) wood (D) sand",
        ["ice"],
    ),
    "codah": (
        lambda n: {
            "id": n,
            "question_category": 0,
            "question_propmt": f"Bo has {n} keys. He",
            "correct_answer_idx": 3,
            "candidate_answers": ["eats them.", "is a key.", "swims.", "opens the door."],
        },
        "Bo has 0 keys. He (A) eats them. (B) is a key. (C) swims. (D) opens the door.",
        ["opens the door."],
    ),
    "commonsense_qa": (
        lambda n: keyed(
            f"Where do {n}  cups stand?", ["shelf", "sea", "sky", "road", "moon"], "A", question_concept="cup"
        ),
        "Where do 0 cups stand? (A) shelf (B) sea (C) sky (D) road (E) moon",
        ["shelf"],
    ),
    "cosmos_qa": (
        lambda n: {
            "id": str(n),
            "context": f"Ana baked {n} pies .",
            "question": "Why did Ana bake ?",
            "answer0": "A feast .",
            "answer1": "A race .",
            "answer2": "A war .",
            "answer3": "None .",
            "label": 0,
        },
        "Why did Ana bake ? [SEP] Ana baked 0 pies . [SEP]  (A) A feast . (B) A race . (C) A war . (D) None .",
        ["A feast ."],
    ),
    "dream": (
        lambda n: {
            "id": n,
            "dialogue_id": "d",
            "dialogue": [f"M: Is it {n} o'clock?", "W: Yes."],
            "answer": "Time.",
            "question": "What do they talk about?",
            "choice": ["Food.", "Time.", "Work."],
        },
        "What do they talk about? [SEP] M: Is it 0 o'clock? W: Yes. [SEP]  (A) Food. (B) Time. (C) Work.",
        ["Time."],
    ),
    "hellaswag": (
        lambda n: {
            "ind": n,
            "activity_label": "x",
            "ctx_a": "x",
            "ctx_b": "x",
            "ctx": f"[header] How to paint [title] {n} walls. she",
            "endings": ["paints.", "flies.", "sings.", "melts."],
            "label": "0",
            "split": "train",
        },
        "[header] How to paint [title] 0 walls. she (A) paints. (B) flies. (C) sings. (D) melts.",
        ["paints."],
    ),
    "openbookqa": (
        lambda n: {
            "id": str(n),
            "question_stem": f"A plant with {n} leaves needs",
            "answerKey": "C",
            "choices": LETTERED | {"text": ["salt", "noise", "light", "paint"]},
        },
        "A plant with 0 leaves needs (A) salt (B) noise (C) light (D) paint",
        ["light"],
    ),
    "qasc": (
        lambda n: keyed(
            f"What do {n} bees make?", ["wax", "ink", "tar", "tin", "ice", "oil", "silk", "glue"], "A", fact1="x"
        ),
        "What do 0 bees make? (A) wax (B) ink (C) tar (D) tin (E) ice (F) oil (G) silk (H) glue",
        ["wax"],
    ),
    "quail": (
        lambda n: {
            "id": str(n),
            "context": f"Bo ran {n} miles.\nHe slept.",
            "question": "How is Bo?",
            "question_type": "x",
            "answers": ["tired", "rich", "old", "not enough information"],
            "correct_answer_id": 0,
        },
        "How is Bo?(A)tired(B)rich(C)old(D)not enough information [SEP] Bo ran 0 miles. He slept.",
        ["tired"],
    ),
    "quarel": (
        lambda n: {
            "id": str(n),
            "answer_index": 0,
            "question": f"Ball {n} rolls far on (A) ice or (B) sand.",
            "world_literals": {},
        },
        "Ball 0 rolls far on (A) ice or (B) sand.",
        ["ice"],
    ),
    "quartz-no_knowledge": (quartz, "Kim walks 0 miles more, so Kim gets (A) weaker (B) stronger", ["stronger"]),
    "quartz-with_knowledge": (
        quartz,
        "Kim walks 0 miles more, so Kim getsWalking makes one strong. (A) weaker (B) stronger",
        ["stronger"],
    ),
    "race-high": (
        race,
        "Ana keeps _ . (A) hens (B) cows (C) pigs (D) bees [SEP] Ana has 0 hens. They lay eggs.",
        ["hens"],
    ),
    "race-middle": (
        race,
        "Ana keeps _ . (A) hens (B) cows (C) pigs (D) bees [SEP] Ana has 0 hens. They lay eggs.",
        ["hens"],
    ),
    "sciq": (
        plain(
            {
                "question": "What do # lungs take in?",
                "distractor1": "soil",
                "distractor2": "light",
                "distractor3": "sugar",
                "correct_answer": "air",
                "support": "Lungs take in air.",
            }
        ),
        "What do 0 lungs take in? (A) soil (B) sugar (C) light (D) air [SEP] Lungs take in air.",
        ["air"],
    ),
    "superglue-copa": (
        plain(
            {
                "premise": "Ana opened # windows.",
                "choice1": "It was hot.",
                "choice2": "It was Monday.",
                "question": "cause",
            },
            idx=0,
            label=0,
        ),
        "Ana opened 0 windows. (A) It was hot. (B) It was Monday.",
        ["It was hot."],
    ),
    "swag": (
        plain(
            {
                "video-id": "v",
                "startphrase": "Bo takes # oars. He",
                "sent1": "Bo takes oars.",
                "sent2": "He",
                "ending0": "rows.",
                "ending1": "bakes.",
                "ending2": "reads.",
                "ending3": "sews.",
            },
            label=0,
        ),
        "Bo takes 0 oars. He (A) rows. (B) bakes. (C) reads. (D) sews.",
        ["rows."],
    ),
    "wino_grande": (
        plain(
            {
                "sentence": "Ana owed Bo # coins, so _ was glad to be paid.",
                "option1": "Ana",
                "option2": "Bo",
                "answer": "2",
            }
        ),
        "Ana owed Bo 0 coins, so _ was glad to be paid. (A) Ana (B) Bo",
        ["Bo"],
    ),
    "wiqa": (
        wiqa,
        "suppose 0 clouds come, how will it affect more rain. (A) more (B) less (C) no effect [SEP] Water rises It falls",
        ["more"],
    ),
    "boolq": (
        lambda n: {
            "question": f"can {n} cats swim",
            "answer": n % 2 == 0,
            "passage": "Cats can swim, but few like it.",
        },
        "question: can 0 cats swim [SEP] context: Cats can swim, but few like it.",
        ["yes"],
    ),
    "mc_taco": (
        labelled({"sentence": "Ana slept # hours.", "question": "When did she sleep?", "answer": "at noon"}, 2),
        "Ana slept 0 hours. [SEP] When did she sleep? [SEP] at noon",
        ["no"],
    ),
    "eli5-askh": (
        thread,
        "How does water reach floor 0? [SEP] I live high up.",
        ["Pump 0 pushes it.", "Gravity helps."],
    ),
    "eli5-asks": (
        thread,
        "How does water reach floor 0? [SEP] I live high up.",
        ["Pump 0 pushes it.", "Gravity helps."],
    ),
    "eli5-eli5": (
        thread,
        "How does water reach floor 0? [SEP] I live high up.",
        ["Pump 0 pushes it.", "Gravity helps."],
    ),
    "lama-conceptnet": (
        plain({"uuid": "u", "masked_sentence": "# birds can [MASK].", "obj_label": "fly", "negated": ""}),
        "0 birds can [MASK].",
        ["fly"],
    ),
    "lama-google_re": (
        plain(
            {
                "sub_label": "Ana Lind #",
                "obj_label": "Oslo",
                "template": "[X] was born in [Y] .",
                "masked_sentence": "x",
            }
        ),
        "Ana Lind 0 was born in [MASK] .",
        ["Oslo"],
    ),
    "numer_sense": (
        plain({"sentence": "Cart # has <mask> wheels.", "target": "four"}),
        "Cart 0 has [MASK] wheels.",
        ["four"],
    ),
    "search_qa": (
        plain(
            {
                "category": "RIVERS",
                "question": "It flows through town #",
                "answer": "the Elbe",
                "air_date": "x",
                "value": "x",
            }
        ),
        "question: It flows through town 0category: RIVERS",
        ["the Elbe"],
    ),
    "web_questions": (
        lambda n: {"url": "u", "question": f"who wrote book {n}?", "answers": ["Ana Lind", "Bo Berg"]},
        "who wrote book 0?",
        ["Ana Lind", "Bo Berg"],
    ),
    "amazon_polarity": (
        labelled({"title": "Lamp #", "content": "It went out at once."}, 2),
        "title: Lamp 0 [SEP] content: It went out at once.",
        ["negative"],
    ),
    "financial_phrasebank": (
        labelled({"sentence": "Mill # lost EUR 2 mn ."}, 3),
        "Mill 0 lost EUR 2 mn .",
        ["negative"],
    ),
    "anli": (
        labelled(
            {"uid": "u", "premise": "Ana has # cats.\nBo has none.", "hypothesis": "Ana has pets.", "reason": ""}, 3
        ),
        "premise: Ana has 0 cats. Bo has none. [SEP] hypothesis: Ana has pets.",
        ["entailment"],
    ),
    "scitail": (
        lambda n: (
            {name: text.replace("#", str(n)) for name, text in SENTENCES.items()}
            | {"gold_label": ("entailment", "neutral")[n % 2]}
        ),
        "sentence 1: Ana has 0 cats. [SEP] sentence 2: Ana owns 0 cats.",
        ["entailment"],
    ),
    "climate_fever": (claim, "Glacier 0 grew.", ["Supports"]),
    "health_fact": (
        labelled({"claim_id": "#", "claim": " Tea # heals\ta cold.", "main_text": "x"}, 4),
        "Tea 0 heals a cold.",
        ["false"],
    ),
    "liar": (liar, "statement: The town has 0 bridges. [SEP] speaker: ana-lind [SEP] context: a speech", ["false"]),
    "tab_fact": (
        table,
        "statement: ana shot 0 goals [SEP] table_caption: cup 1990 [SEP] table_text: name#goals [n] ana#0 [n] bo#1",
        ["refuted"],
    ),
    "tweet_eval-offensive": (tweet(2), "@user bus 0 is late again", ["non-offensive"]),
    "tweet_eval-sentiment": (tweet(3), "@user bus 0 is late again", ["negative"]),
    "tweet_eval-irony": (tweet(2), "@user bus 0 is late again", ["non-irony"]),
    "glue-mrpc": (
        labelled(SENTENCES, 2),
        "sentence 1: Ana has 0 cats. [SEP] sentence 2: Ana owns 0 cats.",
        ["not_equivalent"],
    ),
    "glue-qqp": (
        labelled({"question1": "Who has # cats?", "question2": "Who owns # cats?"}, 2),
        QUESTIONS,
        ["not_duplicate"],
    ),
    "medical_questions_pairs": (
        labelled({"dr_id": "1", "question_1": "Who has # cats?", "question_2": "Who owns # cats?"}, 2),
        QUESTIONS,
        ["Similar"],
    ),
    "samsum": (
        plain({"id": "#", "dialogue": "Ana: #  o'clock?\r\nBo: Yes.", "summary": "They meet at #."}),
        "summarize: Ana: 0 o'clock? Bo: Yes.",
        ["They meet at 0."],
    ),
    "xsum": (
        plain({"id": "#", "document": "Mill # burned.\nNobody was hurt.", "summary": "Fire took mill #."}),
        "summarize: Mill 0 burned. Nobody was hurt.",
        ["Fire took mill 0."],
    ),
    **{
        f"blimp-{name}": (blimp, "sentence 1: Those 0 dogs bark. [SEP] sentence 2: Those 0 dogs barks.", ["sentence 1"])
        for name in ("ellipsis_n_bar_1", "irregular_past_participle_adjectives", "sentential_negation_npi_scope")
    },
}


def test_every_task_has_one_entry_and_one_fixture():
    assert len(ENTRIES) == 51 and set(ENTRIES) == set(ROWS) <= set(quan_task)
    assert all(entry.task == task and entry.metric == METRICS[task] for task, entry in ENTRIES.items())


@pytest.mark.parametrize("task", ENTRIES)
def test_line(task):
    make, text, outputs = ROWS[task]
    assert ENTRIES[task].line(make(0)) == (text, tuple(outputs))


@pytest.mark.parametrize("task", ENTRIES)
def test_line_of_a_row_from_csv(task):
    """A CSV file holds lists as JSON and everything else as text."""
    make, text, outputs = ROWS[task]
    row = {
        name: json.dumps(value) if isinstance(value, (list, dict)) else str(value) for name, value in make(0).items()
    }
    assert ENTRIES[task].line(row) == (text, tuple(outputs))


@pytest.mark.parametrize("task", [task for task in ENTRIES if ENTRIES[task].labels])
def test_every_class_is_reached_by_number_and_by_word(task):
    entry, make = ENTRIES[task], ROWS[task][0]
    reached = {entry.line(make(number))[1][0] for number in range(200)}
    assert reached == set(entry.labels)
    for number, word in enumerate(entry.labels):
        assert label_word(number, entry.labels) == label_word(word.upper().replace(" ", "_"), entry.labels) == word


@pytest.mark.parametrize("task", [task for task in ENTRIES if ENTRIES[task].labels and not task.startswith("blimp")])
@pytest.mark.parametrize("missing", [None, -1, ""])
def test_a_row_without_label_has_no_line(task, missing):
    row = dict(ROWS[task][0](0))
    label = next(name for name in ("claim_label", "gold_label", "label", "answer") if name in row)
    assert ENTRIES[task].line(row | {label: missing}) is None


@pytest.mark.parametrize(
    "task", [entry.task for entry in CHOICE if entry.task not in ("dream", "sciq", "codah", "quail")]
)
def test_a_choice_without_answer_has_no_line(task):
    row = dict(ROWS[task][0](0))
    key = next(k for k in ("answerKey", "answer_index", "answer_label_as_choice", "answer", "label") if k in row)
    assert ENTRIES[task].line(row | {key: ""}) is None


def test_options_carry_the_rows_own_labels():
    row = keyed("Which is it?", ["ice", "tin"], "2") | {"choices": {"text": ["ice", "tin"], "label": ["1", "2"]}}
    assert ENTRIES["ai2_arc"].line(row) == ("Which is it? (1) ice (2) tin", ("tin",))
    assert choices([{"label": "A", "text": "ice"}]) == (["A"], ["ice"])
    assert options(["a", "b"]) == " (A) a (B) b"
    assert pick(["a", "b"], "1") == "b" and pick(["a"], "x") is None


def test_quarel_answers_are_what_follows_the_letters():
    row = {"question": "Is it (A) the wet road or (B) the dry road?", "answer_index": 1}
    assert ENTRIES["quarel"].line(row)[1] == ("the dry road?",)
    assert ENTRIES["quarel"].line(row | {"answer_index": 0})[1] == ("the wet road",)


def test_cleaning():
    assert clean(" a\tb\r\nc\nd\u2028e  f ") == "a b c d e  f"
    assert squeeze("a  b\\nc\n") == "a b c"
    assert clean("\ud800x") == "?x"


def test_errors_name_the_task_and_what_is_known():
    with pytest.raises(UserError, match="'boolq': the rows have no column 'passage'; they have: question, answer"):
        ENTRIES["boolq"].line({"question": "x", "answer": True})
    with pytest.raises(UserError, match="unknown label 'maybe'; known: 0 to 1 or no, yes"):
        ENTRIES["boolq"].line({"question": "x", "passage": "y", "answer": "maybe"})
    with pytest.raises(UserError, match="did you mean 'boolq'"):
        selected(["bolq"])
    assert [entry.task for entry in selected(["binary", "boolq"])] == ["boolq", "mc_taco"]
    assert len(selected([])) == 51


def test_a_users_own_task_needs_no_entry(monkeypatch):
    monkeypatch.setattr(task_list, "quan_task", [*quan_task, "my_task"])
    monkeypatch.setitem(task_list.TASK_LISTS, "my_group", ["my_task"])
    try:
        assert "my_task" not in importlib.reload(registry).ENTRIES
        assert len(registry.selected([])) == len(registry.selected(["quan_task"])) == 51
    finally:
        monkeypatch.undo()
        importlib.reload(registry)


def test_sources_are_declared():
    for entry in ENTRIES.values():
        assert isinstance(entry, Entry) and entry.licence and entry.hub.count("/") == 1
        assert entry.kind in ("classification", "text to text")
