"""The flags of the whole-model experiment, and the cells that they ask for."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pewe.errors import UserError
from pewe.flags import check, flag, seed_flag, suggest
from pewe.fusion.training import ZooConfig
from pewe.merging.models import METHODS as MERGES
from pewe.merging.models import MergeRules, check_patterns

MULTITASK = "multitask"
METHODS = ("individual", "domain_specific", *MERGES, "soft_ensemble", "hard_ensemble", MULTITASK)
PROTOCOLS = ("pairwise", "incremental")
HEADS = ("same", "different")
MULTITASK_GROUPS = ("all", "incremental", "largest")


@dataclass(frozen=True)
class ScoringConfig:
    """How a cell is scored."""

    own_heads: bool = flag(False, "merges keep every model's head for its own domain, and have no score out of domain")
    accuracy: bool = flag(False, "single: score accuracy, as GLUE's tasks, instead of macro F1")


@dataclass(frozen=True)
class Config(ZooConfig, MergeRules, ScoringConfig):
    """One experiment."""

    experiment: str = flag("scripts/fusion/quickstart.toml", "TOML file of these flags", decides=False)
    name: str = flag("", "folder below --results (default: from the TOML file's name)", decides=False, name=True)
    results: str = flag("results", "folder of the experiments' tables", decides=False)
    domains: list[str] = flag(
        [], "domains whose models are merged, in the order of the incremental protocol", unique=True, name=True
    )
    held_out: list[str] = flag([], "domains that are only tested on", unique=True, name=True)
    filter_model: list[str] = flag([], "only these of the domains are merged", unique=True)
    quiet: bool = flag(False, "warnings only", decides=False)
    protocols: list[str] = flag(
        list(PROTOCOLS),
        "pairwise (all pairs), incremental (the first 2, 3, ... domains)",
        choices=PROTOCOLS,
        unique=True,
    )
    methods: list[str] = flag(list(METHODS), f"some of {', '.join(METHODS)}", choices=METHODS, unique=True)
    heads: list[str] = flag(["same"], "initialisation of the heads: same, different", choices=HEADS, unique=True)
    seeds: list[int] = seed_flag([1, 2, 3, 4, 5], "seeds of heads, data order and dropout")
    multitask_groups: str = flag(
        "all", f"groups with multi-task training: {', '.join(MULTITASK_GROUPS)}", choices=MULTITASK_GROUPS
    )


@dataclass(frozen=True)
class Cell:
    """A group of models, made with the same seed, and what is done with them."""

    domains: tuple[str, ...]
    heads: str
    seed: int
    method: str

    def members(self, order: list[str]) -> Iterator[tuple[tuple[str], int, int]]:
        """Domain, seed and head seed of each individual model; different heads differ by the place in the experiment."""
        for name in self.domains:
            yield (name,), self.seed, self.seed if self.heads == "same" else 1000 * self.seed + order.index(name) + 1


def groups(config: Config) -> dict[str, list[tuple[str, ...]]]:
    """The groups of domains of each protocol. Raises UserError for settings that do not fit."""
    check_experiment(config)
    names = [name for name in config.domains if name in (config.filter_model or config.domains)]
    if len(names) < 2:
        raise UserError("at least two domains are needed: --domains, --filter_model")
    found = {
        "pairwise": list(itertools.combinations(names, 2)),
        "incremental": [tuple(names[:count]) for count in range(2, len(names) + 1)],
    }
    return {protocol: found[protocol] for protocol in config.protocols}


def check_experiment(config: Config) -> None:
    """Raises UserError for flags that are not allowed, or that exclude each other."""
    check(config)
    for name in config.filter_model:
        if name not in config.domains:
            raise UserError(f"--filter_model cannot be {suggest(name, config.domains)}")
    for name in ("domains", "protocols", "methods", "heads", "seeds"):
        if not getattr(config, name):
            raise UserError(f"--{name} must name at least one")
    tested = [*config.domains, *config.held_out]
    if twice := [name for name in tested if tested.count(name) > 1]:
        raise UserError(f"--domains, --held_out: {twice[0]!r} stands twice")
    if odd := [name for name in tested if name.startswith(".") or "+" in name]:
        raise UserError(f"--domains: {odd[0]!r} is no name of a folder")
    if config.kind == "yesno":
        check_yesno(config)
    if config.accuracy and config.kind != "single":
        raise UserError(f"--accuracy: the score of --kind {config.kind} is F1; only --kind single can have it")
    check_patterns(config)


def check_yesno(config: Config) -> None:
    """Raises UserError for settings that a T5 without a head cannot have."""
    wrong = {
        "--heads different": config.heads != ["same"],
        "--own_heads": config.own_heads,
        "--fisher hard": config.fisher == "hard",
        "--layers": config.layers,
    }
    if found := [name for name, is_set in wrong.items() if is_set]:
        raise UserError(f"--kind yesno: a T5 has no head and a loss per token, so that {found[0]} does not apply to it")


def cells(config: Config) -> list[Cell]:
    """All cells of the experiment, each once, seed by seed."""
    found = groups(config)
    all_groups = list(dict.fromkeys(itertools.chain(*found.values())))
    joint = {"all": all_groups, "incremental": found.get("incremental", []), "largest": [max(all_groups, key=len)]}
    todo = [
        Cell(group, heads, seed, method)
        for seed, heads, group, method in itertools.product(config.seeds, config.heads, all_groups, config.methods)
        if method != MULTITASK or (heads == config.heads[0] and group in joint[config.multitask_groups])
    ]
    if not todo:
        raise UserError("--multitask_groups incremental: there are none without --protocols incremental")
    return todo


# ---- the scores of one cell


def members(config: Config, cell: Cell) -> list[tuple[tuple[str, ...], int, int]]:
    """Domains, seed and head seed of the models that a cell is made of."""
    return [(cell.domains, cell.seed, cell.seed)] if cell.method == MULTITASK else list(cell.members(config.domains))
