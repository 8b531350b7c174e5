"""The experiments of Jin et al. (2023) on whole models: pairs of domains and growing prefixes, in and out of domain.

    python -m pewe.fusion.experiment --experiment scripts/fusion/quickstart.toml [--seeds 1 2] [--filter_model market school]

Every flag may stand in the experiment's TOML file; the command line overrides it. Models are trained once (pewe/fusion/zoo.py),
every score is stored below the zoo, so that a stopped run continues and a second one only writes its tables:

results/<name>/scores.tsv     one row per group of models, heads, seed, method and tested domain
               groups.tsv     the same, averaged over the tested domains: in_domain, out_of_domain, all
               table.md       mean and standard deviation over seeds, groups down, methods across
               paired.tsv     each method against simple averaging, paired over pairs and seeds (Wilcoxon)
               models.png     score on all domains against the number of models merged
               config.json    the settings, and a digest of each of these files; written last
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pewe.cli import UserError, check, flag, log, log_to, main, seed_flag, show, suggest
from pewe.files import hold, read_record, within, write_config, write_record
from pewe.fusion import tables
from pewe.fusion.domains import Domain, decide, score
from pewe.fusion.voting import hard_ensemble, known_ensemble, soft_ensemble
from pewe.fusion.zoo import Zoo, ZooConfig
from pewe.identity import deciding, difference, digest, files_digests, part
from pewe.merging.collect import StatisticsConfig
from pewe.merging.models import METHODS as MERGES
from pewe.merging.models import MergeConfig, MergeRules, check_patterns, merge_models
from pewe.merging.store import model_tensors

MULTITASK = "multitask"
HEAD = re.compile(r"(classifier|score)\.")
METHODS = ("individual", "domain_specific", *MERGES, "soft_ensemble", "hard_ensemble", MULTITASK)
PROTOCOLS = ("pairwise", "incremental")
HEADS = ("same", "different")
MULTITASK_GROUPS = ("all", "incremental", "largest")


@dataclass
class ScoringConfig:
    """How a cell is scored."""

    own_heads: bool = flag(False, "merges keep every model's head for its own domain, and have no score out of domain")
    accuracy: bool = flag(False, "single: score accuracy, as GLUE's tasks, instead of macro F1")


@dataclass
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


def settings(zoo: Zoo, config: Config, cell: Cell, folders: list[Path]) -> dict:
    """All that the scores of a cell depend on, the content of its models among them."""
    found = {
        "method": cell.method,
        "tests": {name: zoo.test_print(name) for name in zoo.domains},
        "models": [[folder.name, zoo.content(folder)] for folder in folders],
    }
    kinds = (ScoringConfig, MergeRules, StatisticsConfig) if cell.method in MERGES else (ScoringConfig,)
    for kind in kinds:
        found |= deciding(part(config, kind))
    return {**found, "head_rule": config.head_rule}


def scores(zoo: Zoo, config: Config, cell: Cell) -> dict[str, float]:
    """The cell's score on every domain's test set in percent, stored below the zoo and computed only once."""
    folders = [zoo.trained(*member) for member in members(config, cell)]
    about = settings(zoo, config, cell, folders)
    path = zoo.root / "scores" / f"{digest(about)}.json"
    stored = read_record(path)
    found = within(stored, "scores")
    if found is None or difference(stored.get("settings"), about):
        found = compute(zoo, config, cell, folders)
        write_record(path, {"settings": about, "scores": found})
    return found


def compute(zoo: Zoo, config: Config, cell: Cell, folders: list[Path]) -> dict[str, float]:
    """Merge or load what the cell needs, and score it on every domain; nan where the method has no answer."""
    model = None  # an ensemble answers by the stored logits of its models
    if cell.method in MERGES:
        model = merged(zoo, config, cell, folders)
    elif cell.method == MULTITASK:
        model = zoo.model(folders[0])
    own = cell.method == "domain_specific" or (config.own_heads and cell.method in MERGES)
    return {
        name: score_on(zoo, config, cell, folders, model, domain) if name in cell.domains or not own else float("nan")
        for name, domain in zoo.domains.items()
    }


def score_on(
    zoo: Zoo, config: Config, cell: Cell, folders: list[Path], model: torch.nn.Module | None, domain: Domain
) -> float:
    """The score on one domain: of the model, or of the individual models in the folders; the mean of their own scores.

    Those labels of the domain count that some model of the group was trained on; nan where there are none.
    """
    known = [zoo.domains[name].known for name in cell.domains]
    counted = domain.known & frozenset().union(*known)
    if not counted:
        return float("nan")
    if cell.method == "domain_specific":
        place = cell.domains.index(domain.name)
        folders, known = [folders[place]], [known[place]]
    if model is None:
        logits = torch.stack([zoo.stored_logits(folder, domain) for folder in folders])
    else:
        if config.own_heads and cell.method in MERGES:
            own_head(model, folders[cell.domains.index(domain.name)])
        logits, known = zoo.logits(model, domain)[None], [counted]
    found = answers(logits, known, counted, cell.method, config)
    values = [score(one, domain.test, counted, zoo.labels, config.kind, config.accuracy) for one in found]
    return sum(values) / len(values)


def answers(
    logits: Tensor, known: list[frozenset[int]], counted: frozenset[int], method: str, config: Config
) -> list[Tensor]:
    """Answers to a test set from logits (N, R, C) of models that know these labels: of the ensemble, or of each model.

    A model that knows none of the counted labels chooses among all of them with its untrained rows; a T5 has no such rows
    and can be asked for every label.
    """
    if config.kind == "yesno":
        known = [counted] * len(known)
    if method == "soft_ensemble":
        mean = known_ensemble(logits, known) if config.head_rule else soft_ensemble(logits)
        return [decide(mean, counted, config.kind)]
    single = [decide(one, own & counted or counted, config.kind) for one, own in zip(logits, known, strict=True)]
    return [hard_ensemble(torch.stack(single))] if method == "hard_ensemble" else single


def merged(zoo: Zoo, config: Config, cell: Cell, folders: list[Path]) -> torch.nn.Module:
    """The first model with every parameter that is not excluded replaced by the merge."""
    statistics = [zoo.statistics(folder, name) for folder, name in zip(folders, cell.domains, strict=True)]
    models = [model_tensors(folder) for folder in folders]
    rules = MergeConfig(method=cell.method, **vars(part(config, MergeRules)))
    tensors = dict(merge_models(models, rules, statistics, [str(folder) for folder in folders]))
    model = zoo.model(folders[0])
    put(model, tensors)
    return model


def own_head(model: torch.nn.Module, folder: Path) -> None:
    """Give the model the head of the model in this folder."""
    tensors = model_tensors(folder)
    put(model, {name: tensors[name] for name in tensors if HEAD.match(name)})


def put(model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the model these parameters. Raises UserError for one that it does not have."""
    if unknown := model.load_state_dict(tensors, strict=False).unexpected_keys:
        raise UserError(f"the model has no parameter {unknown[0]}")


# ---- the experiment


def prepare(zoo: Zoo, config: Config, todo: list[Cell]) -> None:
    """Train every model that the cells need, so that the bar of the scores tells the time."""
    needed = dict.fromkeys(member for cell in todo for member in members(config, cell))
    waiting = [member for member in needed if zoo.missing(*member)]
    for member in tqdm(waiting, desc="training", unit="model"):
        zoo.trained(*member)


def score_rows(zoo: Zoo, config: Config, todo: list[Cell]) -> pd.DataFrame:
    """One row per cell and tested domain."""
    rows = []
    for cell in tqdm(todo, desc="merging and scoring", unit="cell"):
        about = {"models": len(cell.domains), "group": "+".join(cell.domains), **asdict(cell)}
        about.pop("domains")
        rows += [
            {**about, "tested": name, "in_domain": name in cell.domains, "score": value}
            for name, value in scores(zoo, config, cell).items()
        ]
    return pd.DataFrame(rows)


def results_folder(config: Config) -> Path:
    """The folder of the tables."""
    return Path(config.results) / (config.name or f"fusion_{Path(config.experiment).stem}")


def run(config: Config) -> None:
    """Train, merge, score; write and print the tables."""
    log_to(None, config.quiet)
    log.info("configuration:\n%s", show(config))
    todo, out = cells(config), results_folder(config)
    zoo = Zoo(config, [*config.domains, *config.held_out])
    with hold(out):
        prepare(zoo, config, todo)
        rows = score_rows(zoo, config, todo)
        protocols = {name: ["+".join(group) for group in found] for name, found in groups(config).items()}
        print(tables.write(rows, protocols, out))
        data = {name: domain.fingerprints for name, domain in zoo.domains.items()}
        written = files_digests(out / name for name in tables.FILES)
        write_config(out, {**asdict(config), "start": zoo.start, "data": data, "tables": written})
    log.info("tables: %s", out)


if __name__ == "__main__":
    main(run, Config, __doc__, file_flag="experiment")
