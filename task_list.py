"""The tasks: the paper's 32 and 51, PEMT's 23, the embedded mini gym, and every list that a script can name.

`GROUPS` is the only place where a task, its group and its metric are written down; all other lists derive from it. To
add a task for everybody, add it to a group here, `{task: metric}`; your own is declared beside its data (docs/your_own_task.md).
"""

ACC, EM, QA_F1, ROUGE_L, CLASSIFICATION_F1 = "ACC", "EM", "QA-F1", "Rouge-L", "Classification-F1"
EM_F1 = "EM-F1"

GROUPS: dict[str, dict[str, str]] = {
    # the paper's 32 question-answering tasks
    "machine_reading_comprehension": {"adversarialqa": QA_F1, "hotpot_qa": QA_F1, "superglue-record": QA_F1},
    "multiple_choice_qa": {
        "ai2_arc": ACC,
        "codah": CLASSIFICATION_F1,
        "commonsense_qa": ACC,
        "cosmos_qa": ACC,
        "dream": ACC,
        "hellaswag": ACC,
        "openbookqa": ACC,
        "qasc": ACC,
        "quail": ACC,
        "quarel": ACC,
        "quartz-no_knowledge": ACC,
        "quartz-with_knowledge": ACC,
        "race-high": ACC,
        "race-middle": ACC,
        "sciq": ACC,
        "superglue-copa": ACC,
        "swag": ACC,
        "wino_grande": ACC,
        "wiqa": ACC,
    },
    "binary": {"boolq": ACC, "mc_taco": ACC},
    "long_form_qa": {"eli5-askh": ROUGE_L, "eli5-asks": ROUGE_L, "eli5-eli5": ROUGE_L},
    "closed_book_qa": {
        "lama-conceptnet": EM,
        "lama-google_re": EM,
        "numer_sense": EM,
        "search_qa": EM,
        "web_questions": EM,
    },
    # the 19 others of the paper's larger list
    "sentiment_analysis": {"amazon_polarity": CLASSIFICATION_F1, "financial_phrasebank": CLASSIFICATION_F1},
    "natural_language_inference": {"anli": CLASSIFICATION_F1, "scitail": CLASSIFICATION_F1},
    "fact_checking": {
        "climate_fever": CLASSIFICATION_F1,
        "health_fact": CLASSIFICATION_F1,
        "liar": CLASSIFICATION_F1,
        "tab_fact": CLASSIFICATION_F1,
    },
    "tweets": {
        "tweet_eval-offensive": CLASSIFICATION_F1,
        "tweet_eval-sentiment": CLASSIFICATION_F1,
        "tweet_eval-irony": CLASSIFICATION_F1,
    },
    "paraphrase": {"glue-mrpc": ACC, "glue-qqp": ACC, "medical_questions_pairs": ACC},
    "summarization": {"samsum": ROUGE_L, "xsum": ROUGE_L},
    "linguistic_phenomenon": {
        "blimp-ellipsis_n_bar_1": ACC,
        "blimp-irregular_past_participle_adjectives": ACC,
        "blimp-sentential_negation_npi_scope": ACC,
    },
    # PEMT's sources, in its order, and targets (data/build/pemt.py)
    "pemt_sources": {
        "pemt-mnli": ACC,
        "pemt-qnli": ACC,
        "pemt-qqp": ACC,
        "pemt-sst2": ACC,
        "pemt-squad": EM_F1,
        "pemt-superglue-record": EM_F1,
    },
    "pemt_targets": {
        "pemt-cola": "Matthews",
        "pemt-rte": ACC,
        "pemt-mrpc": ACC,
        "pemt-stsb": "Pearson-Spearman",
        "pemt-superglue-cb": ACC,
        "pemt-superglue-wic": ACC,
        "pemt-superglue-wsc-fixed": ACC,
        "pemt-superglue-boolq": ACC,
        "pemt-superglue-multirc": "MultiRC",
        "pemt-nq": EM_F1,
        "pemt-newsqa": EM_F1,
        "pemt-hotpotqa": EM_F1,
        "pemt-searchqa": EM_F1,
        "pemt-scitail": ACC,
        "pemt-yelp_polarity": ACC,
        "pemt-winogrande": ACC,
        "pemt-paws": ACC,
    },
    # the embedded mini gym (data/mini_gym)
    "mini_reading": {"mini_read_animals": QA_F1, "mini_read_towns": EM, "mini_read_people": ROUGE_L},
    "mini_choice": {"mini_choice_animals": ACC, "mini_choice_towns": ACC, "mini_choice_people": ACC},
    "mini_yesno": {"mini_yesno_animals": ACC, "mini_yesno_towns": ACC, "mini_yesno_people": CLASSIFICATION_F1},
    "mini_closed": {"mini_closed_animals": EM, "mini_closed_towns": EM, "mini_closed_people": QA_F1},
    # tasks of two skills each, which no other task has both of
    "mini_overlap": {"mini_read_choice_animals": ACC, "mini_closed_yesno_towns": ACC, "mini_closed_choice_people": ACC},
}

_QA_GROUPS = ("machine_reading_comprehension", "multiple_choice_qa", "binary", "long_form_qa", "closed_book_qa")
_PEMT_GROUPS = ("pemt_sources", "pemt_targets")
_MINI_GROUPS = tuple(name for name in GROUPS if name.startswith("mini_"))


def _tasks(groups) -> list[str]:
    return [task for group in groups for task in GROUPS[group]]


QA_task_list = _tasks(_QA_GROUPS)
quan_task = _tasks(name for name in GROUPS if name not in (*_PEMT_GROUPS, *_MINI_GROUPS))
pemt_task_list = _tasks(_PEMT_GROUPS)
mini_task_list = _tasks(name for name in _MINI_GROUPS if name != "mini_overlap")
mini_overlap_task_list = _tasks(_MINI_GROUPS)

METRICS: dict[str, str] = {task: metric for group in GROUPS.values() for task, metric in group.items()}
GROUP_OF: dict[str, str] = {task: group for group, tasks in GROUPS.items() for task in tasks}
TASK_LISTS: dict[str, list[str]] = {
    "QA_task_list": QA_task_list,
    "quan_task": quan_task,
    "pemt_task_list": pemt_task_list,
    "mini_task_list": mini_task_list,
    "mini_overlap_task_list": mini_overlap_task_list,
    **{group: list(tasks) for group, tasks in GROUPS.items()},
}

# The original README imports a group by its name: `from task_list import machine_reading_comprehension as TASK_LIST`.
globals().update({group: list(tasks) for group, tasks in GROUPS.items()})
