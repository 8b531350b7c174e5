"""Write the mini emotions: sentences that express an emotion, in six domains with their own words and label sets.

    python data/mini_emotions/generate.py

rewrites the committed files, byte for byte: `<domain>/<domain>_{train,dev,test}.tsv`, a line is `sentence TAB emotion`.

A sentence says how one person is today, and often how another one was yesterday, which does not count. An emotion has
words that every domain uses and invented words of each domain. Some words mean different emotions in different domains,
as `wild` may. A domain knows four of the six emotions. `prose` is the text on which `checkpoints/mini_bert` is
pre-trained: it uses words of one emotion together and never names an emotion, nor the words of changing meaning.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

from pewe.cli import main
from pewe.flags import flag

WORDS = {
    "joy": ["glad", "happy", "cheerful", "merry", "jolly", "delighted"],
    "anger": ["angry", "furious", "cross", "irate", "mad", "outraged"],
    "fear": ["afraid", "scared", "anxious", "timid", "worried", "alarmed"],
    "sadness": ["sad", "gloomy", "tearful", "mournful", "downcast", "lonely"],
    "surprise": ["amazed", "startled", "astonished", "stunned", "puzzled", "speechless"],
    "love": ["fond", "tender", "devoted", "loving", "caring", "smitten"],
}
EMOTIONS = list(WORDS)
THINGS = {
    "market": ["stall", "basket", "scale", "coin", "awning", "crate"],
    "harbour": ["boat", "anchor", "net", "pier", "sail", "lighthouse"],
    "school": ["desk", "chalk", "bell", "map", "slate", "bench"],
    "garden": ["fence", "hedge", "spade", "pond", "arbour", "barrow"],
    "theatre": ["stage", "curtain", "mask", "lamp", "balcony", "costume"],
    "station": ["train", "clock", "platform", "ticket", "signal", "suitcase"],
}
DOMAINS = list(THINGS)
PEOPLE = ["Bola", "Dimo", "Fari", "Jena", "Kulo", "Lena", "Mito", "Nari", "Pesa", "Rudi", "Sola", "Tamo"]
CHANGING = ["wild", "heavy", "cold", "bright", "sharp", "soft", "loud", "deep"]  # their emotion depends on the domain
SIZES = {"train": 600, "dev": 150, "test": 200}  # lines


def invent(rng: Random) -> str:
    """A word of two syllables and an ending."""
    syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
    return "".join(syllables) + rng.choice(["nt", "lk", "sh", "rd", "ff", "nk", "mp"])


def own_words() -> dict[tuple[str, str], list[str]]:
    """Six invented words for every domain and emotion, all different."""
    rng, words = Random("own words"), set()
    while len(words) < 6 * len(DOMAINS) * len(EMOTIONS):
        words.add(invent(rng))
    drawn = rng.sample(sorted(words), len(words))
    return {(domain, emotion): [drawn.pop() for _ in range(6)] for domain in DOMAINS for emotion in EMOTIONS}


OWN = own_words()
MEANING = {(d, word): Random(f"meaning {d} {word}").choice(EMOTIONS) for d in DOMAINS for word in CHANGING}
# every domain lacks two neighbouring emotions, so that each emotion is known to four domains
KNOWN = {d: [e for j, e in enumerate(EMOTIONS) if (j - i) % 6 not in (0, 1)] for i, d in enumerate(DOMAINS)}


def cue(domain: str, emotion: str, rng: Random) -> str:
    """A word for the emotion: of all domains, of this domain, or one whose meaning changes."""
    changing = [word for word in CHANGING if MEANING[domain, word] == emotion]
    kinds = [WORDS[emotion], OWN[domain, emotion], changing or OWN[domain, emotion]]
    return rng.choice(rng.choices(kinds, (3, 4, 2))[0])


def sentence(domain: str, emotion: str, rng: Random) -> str:
    """How a person is today; in two of three sentences also how another one was yesterday."""
    now, then = rng.sample(PEOPLE, 2)
    clauses = [f"today {now} is {cue(domain, emotion, rng)} near the {rng.choice(THINGS[domain])}"]
    if rng.random() < 0.67:
        word = cue(domain, rng.choice(EMOTIONS), rng)
        clauses.append(f"yesterday {then} was {word} by the {rng.choice(THINGS[domain])}")
    rng.shuffle(clauses)
    return " and ".join(clauses)


def prose(rng: Random) -> str:
    """A person who is two or three words of one emotion, and perhaps another one."""
    domain, clauses = rng.choice(DOMAINS), []
    for person, (time, verb) in zip(rng.sample(PEOPLE, 2), [("today", "is"), ("yesterday", "was")], strict=True):
        emotion = rng.choice(EMOTIONS)
        words = " , ".join(rng.sample(WORDS[emotion] + OWN[domain, emotion], rng.choice((2, 3))))
        clauses.append(f"{time} {person} {verb} {words} {rng.choice(('near', 'by'))} the {rng.choice(THINGS[domain])}")
    rng.shuffle(clauses)
    return " and ".join(clauses[: rng.choice((1, 2))])


def lines(domain: str) -> dict[str, list[str]]:
    """The lines of each split; no sentence occurs twice in a domain."""
    rng, seen, found = Random(f"lines {domain}"), set(), {}
    for split, size in SIZES.items():
        found[split] = []
        while len(found[split]) < size:
            emotion = rng.choice(KNOWN[domain])
            text = sentence(domain, emotion, rng)
            if text not in seen:
                seen.add(text)
                found[split].append(f"{text}\t{emotion}\n")
    return found


def vocabulary() -> list[str]:
    """Every word of the sentences and the prose, sorted."""
    frame = ["today", "yesterday", "is", "was", "near", "by", "the", "and", ","]
    groups = [frame, PEOPLE, CHANGING, *WORDS.values(), *THINGS.values(), *OWN.values()]
    return sorted({word for group in groups for word in group})


@dataclass(frozen=True)
class Config:
    """Where to."""

    out: str = flag("data/mini_emotions", "folder of the domains' folders")


def run(config: Config) -> None:
    """Write all domains."""
    out = Path(config.out)
    for domain in DOMAINS:
        (out / domain).mkdir(parents=True, exist_ok=True)
        for split, rows in lines(domain).items():
            (out / domain / f"{domain}_{split}.tsv").write_bytes("".join(rows).encode())
        print(f"{domain:10} {' '.join(KNOWN[domain])}")


if __name__ == "__main__":
    main(run, Config, __doc__)
