"""The world of the mini gym: three domains of invented entities, their facts, and a small grammar.

A domain has *facts*, which always hold (`the nox eats seeds`) and are what a backbone can know by heart, and *scene*
relations, which hold for one paragraph only (`Pena carries keys`) and must be read there. Each relation has two verbs that
say the same. `paragraph` writes plain prose (the pre-training corpus); `generate.py` writes the tasks. Everything is drawn
from `random.Random` seeded by strings, so it never changes.
"""

from dataclasses import dataclass
from random import Random

N_ENTITIES = 60  # per domain
COLOURS = ["red", "blue", "green", "black", "white", "brown", "grey", "golden", "pink", "striped"]
FOODS = ["grass", "nuts", "fish", "seeds", "berries", "roots", "honey", "leaves", "worms", "mushrooms"]
HOMES = ["forests", "marshes", "deserts", "meadows", "caves", "lakes", "hills", "jungles", "reeds", "heaths"]
REGIONS = ["valleys", "cliffs", "coasts", "plains", "highlands", "deltas", "islands", "moors", "dunes", "glaciers"]
PRODUCTS = ["salt", "wool", "glass", "paper", "wine", "iron", "silk", "soap", "rope", "cheese"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
JOBS = ["baker", "smith", "doctor", "teacher", "sailor", "farmer", "painter", "weaver", "miner", "hunter"]
INSTRUMENTS = ["harps", "drums", "flutes", "fiddles", "horns", "lutes", "bells", "organs", "trumpets", "pipes"]
FRUITS = ["apples", "pears", "plums", "cherries", "grapes", "figs", "melons", "lemons", "dates", "peaches"]
PLACES = [
    "mills",
    "barns",
    "towers",
    "bridges",
    "gardens",
    "kitchens",
    "harbours",
    "chapels",
    "inns",
    "squares",
    "sheds",
    "cellars",
]
THINGS = ["lamps", "cups", "hats", "keys", "books", "knives", "coats", "baskets", "coins", "maps", "rings", "boxes"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty"]
GUESTS = ["kings", "queens", "monks", "judges", "poets", "generals", "merchants", "singers", "pilgrims", "thieves"]
WEATHERS = ["rain", "snow", "sunshine", "fog", "wind", "clouds", "storms", "frost"]


@dataclass(frozen=True)
class Relation:
    """One relation and its phrases; `{e}` is an entity, `{v}` a value."""

    name: str
    values: tuple[str, ...]
    says: tuple[str, ...]  # two ways to say it

    @property
    def asks(self) -> tuple[str, ...]:
        """Two ways to ask for the value, as one who has not heard the last word."""
        return tuple(phrase.replace("{v}", "what") for phrase in self.says)

    @property
    def denies(self) -> str:
        """The negated statement."""
        return self.says[0].replace("{e} ", "{e} not ")

    @property
    def checks(self) -> str:
        """The yes/no question."""
        return self.says[1]


@dataclass(frozen=True)
class Domain:
    """A kind of entity with the relations that always hold (`facts`) and those of a scene.

    `kinds` are classes of common nouns that belong to the domain: name of the class -> its words.
    """

    name: str
    article: str
    kinds: dict[str, list[str]]
    entities: tuple[str, ...]
    facts: tuple[Relation, ...]
    scenes: tuple[Relation, ...]

    def entity(self, name: str) -> str:
        """The name as it stands in a sentence: `the brint`, `Tamo`."""
        return self.article + name

    def truth(self, relation: Relation, name: str) -> str:
        """The value that a fact relation gives to an entity."""
        return TRUTH[self.name, relation.name, name]


def invent(kind: str, onsets: str, vowels: str, endings: str, capital: bool) -> tuple[str, ...]:
    """`N_ENTITIES` distinct invented names: one or two open syllables and an ending."""
    rng, names = Random(f"names {kind}"), []
    while len(names) < N_ENTITIES:
        syllables = [rng.choice(onsets.split()) + rng.choice(vowels.split()) for _ in range(rng.choice((1, 1, 2)))]
        name = "".join(syllables) + rng.choice(endings.split())
        name = name.capitalize() if capital else name
        if name not in names and name not in FOODS:
            names.append(name)
    return tuple(names)


def relation(name: str, values: list[str], says: list[str]) -> Relation:
    """A `Relation` from lists."""
    return Relation(name, tuple(values), tuple(says))


ANIMALS = Domain(
    "animals",
    "the ",
    {"colour": COLOURS, "food": FOODS, "landscape": HOMES},
    invent("animals", "b gr kr d f m n p sk t v z br dr", "a e i o u", "nt lk mp sh x rd ff ck nk rb", capital=False),
    facts=(
        relation("colour", COLOURS, says=["{e} is {v}", "{e} looks {v}"]),
        relation("food", FOODS, says=["{e} eats {v}", "{e} wants {v}"]),
        relation("home", HOMES, says=["{e} loves {v}", "{e} inhabits {v}"]),
    ),
    scenes=(
        relation("found", THINGS, says=["{e} found {v}", "{e} hides {v}"]),
        relation("weight", NUMBERS, says=["{e} weighs {v}", "{e} measures {v}"]),
    ),
)
TOWNS = Domain(
    "towns",
    "",
    {"product": PRODUCTS, "day": DAYS, "weather": WEATHERS},
    invent("towns", "K L M N T V R S D G H W", "a e i o u", "lund rov mund stad wick dorf bury gate", capital=True),
    facts=(
        relation("region", REGIONS, says=["{e} borders {v}", "{e} overlooks {v}"]),
        relation("product", PRODUCTS, says=["{e} sells {v}", "{e} makes {v}"]),
        relation("feast", DAYS, says=["{e} celebrates {v}", "{e} honours {v}"]),
    ),
    scenes=(
        relation("guest", GUESTS, says=["{e} greets {v}", "{e} shelters {v}"]),
        relation("weather", WEATHERS, says=["{e} expects {v}", "{e} fears {v}"]),
    ),
)
PEOPLE = Domain(
    "people",
    "",
    {"job": JOBS, "instrument": INSTRUMENTS, "fruit": FRUITS},
    invent("people", "B D F J K L M N P R S T Z", "a e i o u", "mo la ri na bo di lu ke so ta", capital=True),
    facts=(
        relation("job", JOBS, says=["{e} became {v}", "{e} remains {v}"]),
        relation("instrument", INSTRUMENTS, says=["{e} plays {v}", "{e} owns {v}"]),
        relation("fruit", FRUITS, says=["{e} likes {v}", "{e} buys {v}"]),
    ),
    scenes=(
        relation("place", PLACES, says=["{e} visits {v}", "{e} left {v}"]),
        relation("thing", THINGS, says=["{e} carries {v}", "{e} took {v}"]),
    ),
)
DOMAINS = (ANIMALS, TOWNS, PEOPLE)
# every value that always holds, drawn once and for all from the names of domain, relation and entity
TRUTH = {
    (domain.name, rel.name, entity): Random(f"fact {domain.name} {rel.name} {entity}").choice(rel.values)
    for domain in DOMAINS
    for rel in domain.facts
    for entity in domain.entities
}

Fact = tuple[Relation, str, str, bool]  # relation, entity, value, and whether it holds or is denied


def say(domain: Domain, fact: Fact, template: str) -> str:
    """The phrase `template` of a fact."""
    _, entity, value, _ = fact
    return template.format(e=domain.entity(entity), v=value)


def tell(domain: Domain, fact: Fact, rng: Random) -> str:
    """A sentence that says, or denies, a fact."""
    rel, _, _, holds = fact
    return say(domain, fact, rng.choice(rel.says) if holds else rel.denies) + " ."


def scene(domain: Domain, size: int, rng: Random, denied: float = 0.0) -> list[Fact]:
    """`size` facts of the domain's scene relations, a share of them denied; all entities and all values are different."""
    entities, facts = rng.sample(domain.entities, size), []
    values = {rel.name: rng.sample(rel.values, size) for rel in domain.scenes}
    for entity in entities:
        rel = rng.choice(domain.scenes)
        facts.append((rel, entity, values[rel.name].pop(), rng.random() >= denied))
    return facts


def known(domain: Domain, rng: Random) -> Fact:
    """A fact that always holds."""
    rel, entity = rng.choice(domain.facts), rng.choice(domain.entities)
    return rel, entity, domain.truth(rel, entity), True


def options(domain: Domain, kind: str, word: str, rng: Random) -> list[str]:
    """A word of a kind among two words of other kinds of the domain, in any order."""
    others = [w for name, words in domain.kinds.items() if name != kind for w in words]
    words = [word, *rng.sample(others, 2)]
    rng.shuffle(words)
    return words


# ---- prose for pre-training: never a task prefix, a list of options, or a question that stands alone with its answer


def story(domain: Domain, rng: Random) -> list[str]:
    """A scene of one to three facts, told once and then told again in any order, in the same or other words."""
    facts = scene(domain, rng.choice((1, 2, 2, 3, 3)), rng, denied=rng.choice((0.0, 0.5)))
    again = rng.sample(facts, min(2, len(facts)))
    return [tell(domain, fact, rng) for fact in facts] + ["so " + tell(domain, fact, rng) for fact in again]


def lore(domain: Domain, rng: Random) -> list[str]:
    """Facts that always hold."""
    facts = [known(domain, rng) for _ in range(4)]
    return [tell(domain, fact, rng) for fact in facts]


def order(domain: Domain, rng: Random) -> list[str]:
    """Which words belong to which kind, alone and among others."""
    kind = rng.choice(sorted(domain.kinds))
    first, second, third = rng.sample(domain.kinds[kind], 3)
    listed = options(domain, kind, third, rng)
    return [
        f"{first} and {second} are of the kind {kind} .",
        f"of {' and '.join(listed)} only {third} is of the kind {kind} .",
    ]


def paragraph(rng: Random) -> str:
    """A paragraph of one domain."""
    domain = rng.choice(DOMAINS)
    return " ".join(rng.choices((story, lore, order), (3, 4, 2))[0](domain, rng))


def salient_words() -> frozenset[str]:
    """Words that carry content: entities, values, kinds, and the word not."""
    values = (value for domain in DOMAINS for rel in domain.facts + domain.scenes for value in rel.values)
    names = (name for domain in DOMAINS for name in domain.entities)
    kinds = (word for domain in DOMAINS for name, words in domain.kinds.items() for word in (name, *words))
    return frozenset([*values, *names, *kinds, "not"])
