"""Write the tasks of the mini gym: four kinds of question about the three domains of `world.py`, in CrossFit format.

    python data/mini_gym/generate.py

rewrites the committed files, byte for byte. A task is `<task>/<task>_64_<seed>_{train,dev,test}.tsv` (few-shot) and
`<task>/<task>_full_train.tsv`; a line is `input TAB output`, further acceptable outputs in further columns. The test
set and the full train set are the same for every seed. No input occurs in two files of a seed, and where a question
needs knowledge, its (relation, entity) pair belongs to one split only: the answer is never in the train lines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from world import ANIMALS, PEOPLE, TOWNS, Domain, Fact, Relation, options, say, tell

from pewe.cli import main
from pewe.flags import flag, seed_flag

SHARES = {"test": 0.25, "train": 0.1, "dev": 0.1, "full": 0.55}  # of the (relation, entity) pairs of a domain
SIZES = {"test": 200, "train": 200, "dev": 200, "full": 2000}  # lines; each seed draws from `train` and `dev`
SHOTS, SHOTS_PER_CLASS = 64, 16
OPENERS = (
    "",
    "please say : ",
    "tell us : ",
    "do you know : ",
    "riddle : ",
    "a child asks : ",
    "once more : ",
    "quick : ",
    "now : ",
    "think : ",
    "tell me : ",
)
MAX_DRAWS = 100_000

Pair = tuple[Relation, str]
Line = tuple[str, ...]  # input, output, further acceptable outputs


# ---- the four kinds of question; each draws one line


def answers(domain: Domain, fact: Fact) -> list[str]:
    """The value, with and without an article, as acceptable answers."""
    return [fact[2], f"the {fact[2]}"]


def context(domain: Domain, rng: Random, denied: float = 0.0) -> tuple[Fact, str]:
    """Three sentences on three entities, each with a relation of its own, and the one (of a scene) to ask for."""
    entities = rng.sample(domain.entities, len(domain.scenes) + 1)
    told = [
        (rel, entity, rng.choice(rel.values), rng.random() >= denied)
        for rel, entity in zip(domain.scenes, entities, strict=False)
    ]
    always = rng.choice(domain.facts)
    facts = [*told, (always, entities[-1], domain.truth(always, entities[-1]), True)]
    rng.shuffle(facts)
    return rng.choice(told), " ".join(tell(domain, fact, rng) for fact in facts)


def read(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Reading: a question for the value of one of three sentences."""
    fact, told = context(domain, rng)
    return f"{say(domain, fact, rng.choice(fact[0].asks))} ? {told}", *answers(domain, fact)


def choose(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Multiple choice by knowledge: which of three words is of a kind."""
    kind = rng.choice(sorted(domain.kinds))
    word = rng.choice(domain.kinds[kind])
    listed = " ".join(f"({letter}) {w}" for letter, w in zip("ABC", options(domain, kind, word, rng), strict=True))
    return f"{rng.choice(OPENERS)}which is a {kind} ? {listed}", word


def judge(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Yes or no by reading: one of three sentences says it or denies it."""
    fact, told = context(domain, rng, denied=0.5)
    return f"is it true that {say(domain, fact, fact[0].checks)} ? {told}", "yes" if fact[3] else "no"


def recall(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Closed book: the value of a fact."""
    rel, entity = rng.choice(pairs)
    fact = (rel, entity, domain.truth(rel, entity), True)
    return f"{rng.choice(OPENERS)}{say(domain, fact, rng.choice(rel.asks))} ?", *answers(domain, fact)


# ---- two skills at once: kinds that no single other kind teaches


def options_of(relation: Relation, value: str, rng: Random) -> str:
    """The value among two others of the relation, as a list of options."""
    words = [value, *rng.sample([word for word in relation.values if word != value], 2)]
    rng.shuffle(words)
    return " ".join(f"({letter}) {word}" for letter, word in zip("ABC", words, strict=True))


def read_and_choose(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Multiple choice by reading: which of three words one of three sentences says."""
    fact, told = context(domain, rng)
    return f"{say(domain, fact, rng.choice(fact[0].asks))} ? {options_of(fact[0], fact[2], rng)} {told}", fact[2]


def recall_and_judge(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Yes or no, closed book: whether a fact holds."""
    rel, entity = rng.choice(pairs)
    truth = domain.truth(rel, entity)
    value = rng.choice([truth, rng.choice([word for word in rel.values if word != truth])])
    asked = say(domain, (rel, entity, value, True), rel.checks)
    return f"{rng.choice(OPENERS)}is it true that {asked} ?", "yes" if value == truth else "no"


def recall_and_choose(domain: Domain, pairs: list[Pair], rng: Random) -> Line:
    """Multiple choice, closed book: which of three words is the value of a fact."""
    rel, entity = rng.choice(pairs)
    truth = domain.truth(rel, entity)
    asked = say(domain, (rel, entity, truth, True), rng.choice(rel.asks))
    return f"{rng.choice(OPENERS)}{asked} ? {options_of(rel, truth, rng)}", truth


@dataclass(frozen=True)
class Task:
    """One task: its name, group and metric, how a line is drawn, and whether all acceptable outputs are listed."""

    name: str
    group: str
    metric: str
    domain: Domain
    draw: Callable[[Domain, list[Pair], Random], Line]
    classes: tuple[str, ...] = ()
    all_outputs: bool = False


YES_NO = ("yes", "no")
TASKS = (
    Task("mini_read_animals", "mini_reading", "QA-F1", ANIMALS, read, all_outputs=True),
    Task("mini_read_towns", "mini_reading", "EM", TOWNS, read),
    Task("mini_read_people", "mini_reading", "Rouge-L", PEOPLE, read, all_outputs=True),
    Task("mini_choice_animals", "mini_choice", "ACC", ANIMALS, choose),
    Task("mini_choice_towns", "mini_choice", "ACC", TOWNS, choose),
    Task("mini_choice_people", "mini_choice", "ACC", PEOPLE, choose),
    Task("mini_yesno_animals", "mini_yesno", "ACC", ANIMALS, judge, YES_NO),
    Task("mini_yesno_towns", "mini_yesno", "ACC", TOWNS, judge, YES_NO),
    Task("mini_yesno_people", "mini_yesno", "Classification-F1", PEOPLE, judge, YES_NO),
    Task("mini_closed_animals", "mini_closed", "EM", ANIMALS, recall),
    Task("mini_closed_towns", "mini_closed", "EM", TOWNS, recall),
    Task("mini_closed_people", "mini_closed", "QA-F1", PEOPLE, recall, all_outputs=True),
    Task("mini_read_choice_animals", "mini_overlap", "ACC", ANIMALS, read_and_choose),
    Task("mini_closed_yesno_towns", "mini_overlap", "ACC", TOWNS, recall_and_judge, YES_NO),
    Task("mini_closed_choice_people", "mini_overlap", "ACC", PEOPLE, recall_and_choose),
)


# ---- splits and files


def split_pairs(domain: Domain) -> dict[str, list[Pair]]:
    """Every (relation, entity) pair of a domain in exactly one split, the same for all its tasks."""
    pairs = [(rel, entity) for rel in domain.facts for entity in domain.entities]
    Random(f"pairs {domain.name}").shuffle(pairs)
    splits, start = {}, 0
    for split, share in SHARES.items():
        end = start + round(share * len(pairs))
        splits[split], start = pairs[start:end], end
    return splits


def draw_lines(task: Task) -> dict[str, list[Line]]:
    """The lines of each split: distinct inputs, classes in turn."""
    seen, pairs, lines = set(), split_pairs(task.domain), {}
    for split, size in SIZES.items():
        rng, lines[split] = Random(f"{task.name} {split}"), []
        for _ in range(MAX_DRAWS):
            if len(lines[split]) == size:
                break
            line = task.draw(task.domain, pairs[split], rng)
            wanted = task.classes[len(lines[split]) % len(task.classes)] if task.classes else line[1]
            if line[0] not in seen and line[1] == wanted:
                seen.add(line[0])
                lines[split].append(line if task.all_outputs else line[:2])
        if len(lines[split]) < size:
            raise SystemExit(f"{task.name}: only {len(lines[split])} distinct lines for {split}, {size} are needed")
        rng.shuffle(lines[split])
    return lines


def few_shot(task: Task, lines: list[Line], seed: int, split: str) -> list[Line]:
    """The lines of one seed: 64, or 16 of each class."""
    lines = Random(f"{task.name} {split} {seed}").sample(lines, len(lines))
    if not task.classes:
        return lines[:SHOTS]
    kept = [line for name in task.classes for line in [x for x in lines if x[1] == name][:SHOTS_PER_CLASS]]
    return [line for line in lines if line in kept]


def write(path: Path, lines: list[Line]) -> None:
    """Write a TSV file, UTF-8 with plain newlines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(line) + "\n" for line in lines).encode())


@dataclass(frozen=True)
class Config:
    """Which samples, and where."""

    seeds: list[int] = seed_flag([42], "seeds of the few-shot samples")
    out: str = flag("data/mini_gym", "folder of the task folders")


def run(config: Config) -> None:
    """Write all tasks for all seeds."""
    for task in TASKS:
        lines, folder = draw_lines(task), Path(config.out) / task.name
        write(folder / f"{task.name}_full_train.tsv", lines["full"])
        for seed in config.seeds:
            prefix = f"{task.name}_{SHOTS}_{seed}"
            write(folder / f"{prefix}_train.tsv", few_shot(task, lines["train"], seed, "train"))
            write(folder / f"{prefix}_dev.tsv", few_shot(task, lines["dev"], seed, "dev"))
            write(folder / f"{prefix}_test.tsv", lines["test"])
        print(f"{task.name:22} {task.group:8} {task.metric:18} {len(lines['full'])} full, {len(lines['test'])} test")


if __name__ == "__main__":
    main(run, Config, __doc__)
