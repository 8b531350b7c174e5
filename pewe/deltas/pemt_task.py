"""PEMT around the model: what a delta needs to know of its task, and the result block."""

import datetime
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pewe.backbone import Backbone
from pewe.batches import scoring_batches
from pewe.data import Encoded, distinct, task_names
from pewe.deltas.base import Delta
from pewe.deltas.checkpoint import delta_identity, read_checkpoint, task_checkpoint
from pewe.deltas.pemt import Pemt, PemtSource
from pewe.errors import UserError
from pewe.files import write_table, write_text
from pewe.identity import state_digest
from pewe.losses import member_losses
from pewe.reporting.plots import heat_map
from pewe.state import DeltaState, check_state
from pewe.texts import read_lines
from task_list import METRICS, TASK_LISTS

MEASURED = ("test_runtime", "test_samples_per_second")  # entries of a result block that differ each time
GATES = "gates.tsv"  # layer, source, weight: in the folder of a run
REPORT = (GATES, "gates.png", "test_metrics.txt")  # what `report` writes there
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
    block = {
        "epoch": epochs,
        f"test_{METRICS[run.task].lower()}": 100 * score,
        "test_average_metrics": 100 * score,
        "test_loss": loss,
    }
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
