"""PEMT around the model: what a delta needs to know of its task, the result block, and the gates as tables and pictures.

    python -m pewe.pemt --runs checkpoints/pemt/stage2_few_shot --weights Loss=checkpoints/adapter/Loss/final_weight.tsv

gathers the gates.tsv of all runs below a folder: mean gate weight by target and source and by layer and source, the weight
on the sources of the target's own group, and the rank correlation with the weights of similarity measures.
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pewe import stats
from pewe.backbone import Backbone
from pewe.checkpoint import check_state, delta_identity, read_checkpoint, task_checkpoint
from pewe.cli import UserError, flag, log, main, suggest
from pewe.data import Encoded, distinct, scoring_batches, task_names
from pewe.deltas import Delta, DeltaState, Pemt, PemtSource
from pewe.forward import member_losses
from pewe.identity import difference, state_digest
from pewe.plots import heat_map
from pewe.results import numeric, read_record, read_table, within, write_config, write_table, write_text
from pewe.runs import GATES, RECORD, folder_of, gates_print
from pewe.texts import read_lines
from task_list import METRICS, TASK_LISTS

MEASURED = ("test_runtime", "test_samples_per_second")  # entries of a result block that differ each time
CORRELATIONS = "rank_correlation.tsv"
AS_ORIGINAL_LENGTH = 20  # the original loses its max_length: it always generates 20 ids, the start among them


def descriptions(path: Path) -> dict[str, str]:
    """task -> sentence. Raises UserError with file and line for a line that is not task TAB sentence."""
    if not path.is_file():
        raise UserError(f"there is no file {path} (--task_descriptions)")
    found: dict[str, str] = {}
    for number, line in read_lines(path):
        task, _, sentence = (cell.strip() for cell in line.partition("\t"))
        if not task or not sentence or task in found:
            raise UserError(f"{path}, line {number}: expected a new task TAB a sentence, not {line[:60]!r}")
        found[task] = sentence
    return found


def prepare_delta(delta: Delta, config, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a PEMT delta ready for a task, the length of its prompt and its experts; other kinds need nothing.

    The target itself is never among the experts. Raises UserError for a task without description or without sources.
    """
    if not isinstance(delta, PemtSource):
        return
    path = Path(config.task_descriptions)
    sentence = descriptions(path).get(task)
    if sentence is None:
        raise UserError(f"{path} has no description of task {task!r}; add a line: {task} TAB sentence")
    delta.describe(tokenizer(sentence)["input_ids"])
    if isinstance(delta, Pemt):
        given = [one for name in config.experts for one in TASK_LISTS.get(name, [name])]
        names = [name for name in (distinct(given, "--experts") if given else task_names(config)) if name != task]
        if not names:
            raise UserError(f"there is no expert for target {task!r} but itself; name the sources with --experts")
        states = {name: read_expert(delta, config, name) for name in names}
        delta.set_experts(states)
        delta.built_on = {name: state_digest(state) for name, state in states.items()}


def read_expert(delta: Pemt, config, name: str) -> DeltaState:
    """The delta of stage 1 of a source, checked against the backbone."""
    path, hint = task_checkpoint(Path(config.expert_path), name), "tune the sources first: bash scripts/pemt_stage1.sh"
    state = read_checkpoint(path, "pemt_source", None, hint, mapped=True, made_for=delta_identity(config))
    check_state(state, delta.source_shapes(state), path)
    return state


def generation_length(config) -> int:
    """Tokens that a run generates, start token included."""
    original = config.as_original and config.tune_method.startswith("pemt")
    return AS_ORIGINAL_LENGTH if original else config.max_output_length


@torch.no_grad()
def measure(
    backbone: Backbone, delta: PemtSource, encoded: Encoded, batch_size: int, as_original: bool
) -> tuple[float, Tensor | None]:
    """Mean loss of the lines, with the sparsity term, and for stage 2 the mean gates (layers, E).

    Gates are averaged over lines; in the original over batches, a smaller last batch counting as much: `as_original`.
    A line has the loss of its batch.
    """
    backbone.model.eval()
    losses, gates, lines = [], [], []
    for batch in scoring_batches(encoded, batch_size, backbone.pad):
        loss = member_losses(delta, batch) + delta.extra_loss()
        losses.append(float(loss))
        lines.append(float(len(batch.labels)))
        if isinstance(delta, Pemt):
            gates.append(delta.gates().mean(1).cpu())
    weights = torch.tensor(lines) / sum(lines)
    share = torch.full_like(weights, 1 / len(lines)) if as_original else weights
    mean = torch.einsum("n,nle->le", share, torch.stack(gates)) if gates else None
    return float(weights @ torch.tensor(losses)), mean


def report(backbone: Backbone, delta: Delta, run, score: float, epochs: float, seconds: float, config) -> dict:
    """The result block of a tested run of PEMT: written to its folder with the gates, printed, and returned by name.

    Other kinds have none. Scores are in percent, as the original prints them; `seconds` is the wall time of generation.
    """
    if not isinstance(delta, PemtSource):
        return {}
    encoded = run.splits["test"]
    loss, gates = measure(backbone, delta, encoded, config.predict_batch_size, config.as_original)
    block = {"epoch": epochs, f"test_{METRICS[run.task].lower()}": 100 * score, "test_average_metrics": 100 * score,
             "test_loss": loss}  # fmt: skip
    if gates is not None:
        block |= {f"test_moe_weight_{number}": float(weight) for number, weight in enumerate(gates.mean(0))}
        frame = pd.DataFrame(gates.numpy(), index=layer_names(delta), columns=list(delta.built_on))
        write_table(run.folder / GATES, long(frame.rename_axis("layer")))
        heat_map(frame, run.folder / "gates.png", f"{run.task}: gate weights", down="layer")
    block |= {"test_runtime": seconds, "test_samples_per_second": len(encoded.inputs) / seconds}
    write_text(run.folder / "test_metrics.txt", block_text(block))
    if not config.quiet:
        print(block_text(block))
    return block


def layer_names(delta: Pemt) -> list[str]:
    """encoder 0, ..., decoder 0, ...: in the order of `Pemt.gates`."""
    return [" ".join((key.split(".")[0], key.split(".")[2])) for key in delta.at]


def long(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows (index name, source, weight) of a frame with sources across."""
    return frame.reset_index().melt(frame.index.name, var_name="source", value_name="weight")


def block_text(block: dict) -> str:
    """`***** test metrics *****` and the entries, sorted, as transformers 4.6 prints them."""
    shown = {}
    for name, value in sorted(block.items()):
        if name.endswith("runtime"):
            clock = datetime.timedelta(seconds=int(value))
            shown[name] = f"{clock}.{int(value % 1 * 100):02d}"
        else:
            shown[name] = str(round(value, 2 if name == "epoch" else 4))
    wide, high = max(map(len, shown)), max(map(len, shown.values()))
    lines = [f"  {name:<{wide}} = {value:>{high}}" for name, value in shown.items()]
    return "\n".join(["***** test metrics *****", *lines]) + "\n"


@dataclass
class GatesConfig:
    """Which runs, and what their gates are compared with."""

    runs: list[str] = flag(["checkpoints/pemt/stage2_few_shot"], "folders with the runs of stage 2 below them")
    weights: list[str] = flag([], "NAME=final_weight.tsv of a similarity measure, or the weights.tsv of an experiment")
    delta: str = flag("adapter", "the delta of weights.tsv whose measures are compared")
    out: str = flag("results/pemt_gates", "folder of the tables and pictures")


def read_gates(folder: Path) -> pd.DataFrame:
    """Rows (target, run, layer, source, weight) of every run below a folder. Raises UserError where there is none."""
    places = {path.parent for name in (RECORD, GATES) for path in folder.rglob(name)}
    gates = gates_of(sorted(places))
    if gates.empty:
        raise UserError(f"there is no {GATES} below {folder}; run scripts/pemt_stage2_few_shot.sh first")
    return gates


def gates_of(folders: Sequence[Path]) -> pd.DataFrame:
    """Rows (target, run, layer, source, weight) of these runs; a run of PEMT without a tested result is left out, which is said."""
    parts, settings = [pd.DataFrame(columns=["target", "run", "layer", "source", "weight"])], {}
    for folder in folders:
        record = read_record(folder / RECORD) or {}
        if within(record, "result", "gates", kind=str) or (folder / GATES).exists():
            parts.append(_gates_of_run(folder, record))
            own = {name: value for name, value in record["settings"].items() if name not in _OF_ONE_RUN}
            if why := difference(settings.setdefault(own["task"], own), own):
                log.warning("%s is of other settings than an earlier run of this target: %s", folder, why)
        elif within(record, "settings", "tune_method", kind=str) == "pemt":
            log.warning("%s has no gates and is left out: it was interrupted, has failed, or was not tested", folder)
    return pd.concat(parts[1:] or parts, ignore_index=True)[list(parts[0])]


_OF_ONE_RUN = ("seed", "prefix", "data", "init", "built_on")  # of its settings, in which a repetition may differ


def _gates_of_run(folder: Path, record: dict) -> pd.DataFrame:
    """The gates that the result in a run's record is of. Raises UserError where those in the folder are others."""
    path, result = folder / GATES, within(record, "result") or {}
    if not result.get("gates") or gates_print(folder) != result["gates"]:
        raise UserError(f"{path} is not of a result in {RECORD} beside it (of another run or version, changed, or lost); "
                        "start that run again")  # fmt: skip
    own = folder_of(Path(), result).parts
    if folder.resolve().parts[-len(own) :] != own:
        raise UserError(f"{path} is of the run {folder_of(Path(), result)}, which has its own folder")
    table = read_table(path, ["layer", "source", "weight"]).assign(target=result["task"], run=str(folder))
    for name in (result["task"], *table["source"]):
        if name not in METRICS:
            raise UserError(f"{path}: task {suggest(name, METRICS)}")
    return table.assign(weight=numeric(table, "weight", path))


def mean_gates(gates: pd.DataFrame) -> pd.DataFrame:
    """Rows (target, source, weight): the mean over layers and runs."""
    return gates.groupby(["target", "source"], sort=False)["weight"].mean().reset_index()


def own_group(gates: pd.DataFrame) -> pd.DataFrame:
    """By layer: mean over runs of the weight on the sources of the target's own group, and what chance would give."""
    runs = gates.rename(columns={"layer": "delta", "run": "seed"}).assign(init=GATES)
    shares = stats.own_group(runs).groupby("delta", sort=False)[["own_group", "chance"]].mean()
    return shares.rename_axis("layer")


def rank_correlations(gates: pd.DataFrame, measures: dict[str, pd.DataFrame]) -> Iterator[dict]:
    """Spearman correlation over the sources of a target's gate weights, of each layer and of all, with each measure's.

    nan where all weights of a measure or a gate are equal. Raises UserError where a measure lacks a pair.
    """
    everything = pd.concat([gates, gates.assign(layer="all")])
    for (target, layer), rows in everything.groupby(["target", "layer"], sort=False):
        mean = rows.groupby("source")["weight"].mean()
        for name, table in measures.items():
            other = table[table["target"] == target].groupby("source")["weight"].mean().reindex(mean.index)
            if other.isna().any():
                missing = other.index[other.isna()][0]
                raise UserError(f"--weights {name}: no weight of target {target!r}, source {missing!r}")
            known = mean.nunique() > 1 and other.nunique() > 1
            spearman = mean.corr(other, method="spearman") if known else float("nan")
            yield {"target": target, "layer": layer, "measure": name, "spearman": spearman}


def read_measures(files: Sequence[str], delta: str) -> dict[str, pd.DataFrame]:
    """Tables (target, source, weight) by the name of the measure, from NAME=FILE or all inits of a weights.tsv.

    Raises UserError for two measures of one name, and for a weights.tsv without this delta.
    """
    measures: dict[str, pd.DataFrame] = {}
    for given in files:
        name, _, path = given.rpartition("=")
        table = read_table(Path(path), ["target", "source", "weight", *([] if name else ["delta", "init"])])
        table["weight"] = numeric(table, "weight", Path(path))
        parts = [(name, table)] if name else table[table["delta"] == delta].groupby("init")
        found = {str(init): part for init, part in parts}
        if not found:
            raise UserError(f"{path} has no row of --delta {delta}")
        if twice := found.keys() & measures.keys():
            raise UserError(f"--weights gives two measures the name {min(twice)!r}; give them others: NAME=FILE")
        measures |= found
    return measures


def run(config: GatesConfig) -> None:
    """Read, print and write."""
    parts, out = [read_gates(Path(folder)) for folder in config.runs], Path(config.out)
    places, gates = [Path(run).resolve() for part in parts for run in part["run"].unique()], pd.concat(parts)
    if twice := [place for place in places if places.count(place) > 1]:
        raise UserError(f"--runs names {twice[0]} twice")
    measures = read_measures(config.weights, config.delta)
    correlations = pd.DataFrame(rank_correlations(gates, measures)) if measures else None
    (out / CORRELATIONS).unlink(missing_ok=True)  # of other measures, or other runs
    write_table(out / GATES, gates)
    for down in ("target", "layer"):
        frame = gates.pivot_table(index=down, columns="source", values="weight", sort=False)
        frame = frame[sorted(frame, key=list(METRICS).index)]
        if down == "target":
            frame = frame.loc[sorted(frame.index, key=list(METRICS).index)]
        heat_map(frame, out / f"gates_by_{down}.png", "mean gate weight", down=down)
    own = own_group(gates)
    write_table(out / "own_group.tsv", own.reset_index())
    print(own.round(3).to_string())
    print(f"above chance in {int((own['own_group'] > own['chance']).sum())} of {len(own)} layers")
    if correlations is not None:
        write_table(out / CORRELATIONS, correlations)
        print(
            correlations.pivot_table(index="layer", columns="measure", values="spearman", sort=False)
            .round(3)
            .to_string()
        )
    write_config(out, config)


if __name__ == "__main__":
    main(run, GatesConfig, __doc__)
