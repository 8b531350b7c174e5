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

import re
from dataclasses import asdict, replace
from pathlib import Path

from pewe.command import main

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pewe.cli import log, log_settings, log_to
from pewe.errors import UserError
from pewe.files import hold, read_record, within, write_config, write_record
from pewe.fusion import tables
from pewe.fusion.cells import MULTITASK, Cell, Config, ScoringConfig, cells, groups, members
from pewe.fusion.domains import Domain, decide, score
from pewe.fusion.voting import hard_ensemble, known_ensemble, soft_ensemble
from pewe.fusion.zoo import Zoo
from pewe.identity import deciding, difference, digest, files_digests, part
from pewe.merging.collect import StatisticsConfig
from pewe.merging.models import METHODS as MERGES
from pewe.merging.models import MergeConfig, MergeRules, merge_models
from pewe.merging.store import model_tensors
from pewe.setting import LIMIT_TRAIN_ITERS

HEAD = re.compile(r"(classifier|score)\.")


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
    config = replace(config, updates=min(config.updates, LIMIT_TRAIN_ITERS or config.updates))
    log_to(None, config.quiet)
    log_settings(config)
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
