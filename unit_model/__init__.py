"""The inits that a script of this folder makes, by name. A new one is a script beside this file and an entry here.

No script is imported before it is used, so that tables know the inits without torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType

# groups of inits
PAPER = "the paper's"
RIVALS = "rivals"
FUSION = "of Dataless Knowledge Fusion"
EFFECTIVE = "of another effective number of sources"
MODULES = "with a row per block or layer"

RANDOM = ("tuned", "Random")  # a step of the experiment: its kind, and of what


@dataclass(frozen=True)
class Ensemble:
    """How the weights of an init are made."""

    script: str  # with `Config` and `run`
    needs: tuple[tuple[str, str], ...] = ()  # steps, beside the sources
    flags: Mapping = field(default_factory=dict)  # of the script
    measure: str = ""  # whose similarity they are made from: the step ("similarity", <the init>)
    measure_flags: Mapping = field(default_factory=dict)
    group: str = PAPER
    kinds: tuple[str, ...] = ()  # of delta that it is for; none: all
    sections: tuple[str, ...] = ()  # of a suite whose flags the script takes beside those of [weights]

    def combined(self, name: str, rule: str) -> "Ensemble":
        """The same weights, those of the init `name`, with another combiner (`--combine`)."""
        needs = (("similarity", name),) if self.measure else self.needs
        return replace(self, needs=needs, flags={**self.flags, "combine": rule}, measure="", measure_flags={})

    def load(self) -> ModuleType:
        """The script."""
        return import_module(f"unit_model.{self.script}")


def by_measure(measure: str, group: str = PAPER, **flags) -> Ensemble:
    """Softmax of a similarity that is computed with these flags."""
    return Ensemble("unit_model_others", measure=measure, measure_flags=flags, group=group)


def of_effective(number: int) -> Ensemble:
    """Softmax of the similarity Loss at the temperature that gives this median effective number of sources."""
    return Ensemble("unit_model_others", (("similarity", "Loss"),), {"effective": float(number)}, group=EFFECTIVE)


class Ensembles(Mapping[str, Ensemble]):
    """Name -> init. NAME+RULE is known too, though not listed: the weights of NAME with the combiner RULE (`--combine`)."""

    def __init__(self, entries: Mapping[str, Ensemble]):
        self.entries = entries

    def __getitem__(self, name: str) -> Ensemble:
        base, plus, rule = name.partition("+")
        return self.entries[base].combined(base, rule) if plus else self.entries[base]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def listed(row: str) -> str:
    """The listed init of a row of the table: of NAME+RULE, and of NAME/SCOPE, which has a row for every scope, NAME."""
    return row.split("/")[0].split("+")[0]


ENSEMBLES = Ensembles(
    {
        "Average": Ensemble("unit_model_average"),
        "Manual": Ensemble("unit_model_average", flags={"manual_division": True}),
        "Cosine": Ensemble("unit_model_cos", (RANDOM,)),
        "Euclidean": Ensemble("unit_model_Euclidean", (("pairs", ""),)),
        "Performance": Ensemble("unit_model_Performance", (("pairs", ""), ("zero_shot", ""))),
        "Loss": by_measure("Loss"),
        "KL": by_measure("KL"),
        "EL2N": by_measure("EL2N"),
        "Cosine_of_Logits_and_Labels": by_measure("Cosine_of_Logits_and_Labels"),
        "GraNd": by_measure("GraNd"),
        "TextEmb": by_measure("TextEmb", RIVALS),
        "Length": by_measure("Length", RIVALS),
        "TaskEmb": by_measure("TaskEmb", RIVALS),
        "LogME": by_measure("LogME", RIVALS),
        "Best_source": Ensemble("unit_model_others", (("similarity", "Loss"),), {"top_k": 1}, group=RIVALS),
        "Soup": Ensemble("unit_model_soup", (("zero_shot", ""),), group=RIVALS),
        "LoraHub": Ensemble("unit_model_LoraHub", group=RIVALS),
        "Gradient": Ensemble("unit_model_gradient", group=RIVALS),
        "Gradient_layer": Ensemble("unit_model_gradient", flags={"by_layer": True}, group=RIVALS),
        "Union": Ensemble("unit_model_union", group=RIVALS, sections=("tuning", "sources")),
        "Arrow": Ensemble("unit_model_arrow", group=RIVALS, kinds=("lora",)),
        "TaskArithmetic": Ensemble("unit_model_scale", group=RIVALS),
        **{f"Loss_{number}": of_effective(number) for number in (2, 3, 5)},
        "Fisher": Ensemble("unit_model_Fisher", (("statistics", ""),), group=FUSION),
        "RegMean": Ensemble("unit_model_RegMean", (("statistics", ""),), group=FUSION),
        "GraNd_block": by_measure("GraNd", MODULES, mode="block"),
        "GraNd_layer": by_measure("GraNd", MODULES, mode="layer"),
        "block": by_measure("block", MODULES),
    }
)


def of_group(group: str) -> list[str]:
    """The names of the inits of a group."""
    return [name for name, ensemble in ENSEMBLES.items() if ensemble.group == group]
