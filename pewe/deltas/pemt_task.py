"""PEMT around the model: what a delta of either stage needs to know of its task, and its result block."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pewe.backbone import Backbone
from pewe.batches import scoring_batches
from pewe.data import DataConfig, Encoded, distinct, task_names
from pewe.deltas.base import Delta
from pewe.deltas.config import DeltaConfig
from pewe.deltas.kinds import GATES
from pewe.deltas.tunable import ReportFlags, Tested
from pewe.errors import UserError
from pewe.files import write_table, write_text
from pewe.losses import member_losses
from pewe.reporting.plots import heat_map
from pewe.texts import read_lines
from task_list import METRICS, TASK_LISTS

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


def expert_names(config: DeltaConfig, task: str) -> list[str]:
    """The sources of a target's experts, in order; the target itself is never among them.

    Raises UserError where there is none.
    """
    given = [one for name in config.experts for one in TASK_LISTS.get(name, [name])]
    names = [
        name
        for name in (distinct(given, "--experts", config.task_dir) if given else task_names(config))
        if name != task
    ]
    if not names:
        raise UserError(f"there is no expert for target {task!r} but itself; name the sources with --experts")
    return names


class PemtDelta(Delta):
    """What both stages do for a task: the prompt begins as its description, the result block is that of the original."""

    def describe(self, ids: Sequence[int]) -> None:
        """Is told the token ids of the task's description."""
        raise NotImplementedError

    def gates(self) -> Tensor | None:
        """The gates of the last forward, (layers, B, E); stage 1 has none."""
        return None

    def for_task(self, config: DeltaConfig, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """The prompt gets the length of the task's description. Raises UserError for a task without one."""
        path = Path(config.task_descriptions)
        sentence = descriptions(path).get(task)
        if sentence is None:
            raise UserError(f"{path} has no description of task {task!r}; add a line: {task} TAB sentence")
        self.describe(tokenizer(sentence)["input_ids"])

    def generation_length(self, config: DataConfig) -> int:
        """--max_output_length, of which the original loses sight."""
        return AS_ORIGINAL_LENGTH if config.as_original else super().generation_length(config)

    def result_block(self, backbone: Backbone, tested: Tested, config: ReportFlags) -> dict[str, float]:
        """The result block, printed and written with the gates. Scores are in percent, as the original prints them."""
        task = tested.test.task
        loss, gates = measure(backbone, self, tested.test, config.predict_batch_size, config.as_original)
        block = {
            "epoch": tested.epochs,
            f"test_{METRICS[task].lower()}": 100 * tested.score,
            "test_average_metrics": 100 * tested.score,
            "test_loss": loss,
        }
        if gates is not None:
            block |= {f"test_moe_weight_{number}": float(weight) for number, weight in enumerate(gates.mean(0))}
            frame = pd.DataFrame(gates.numpy(), index=layer_names(self), columns=list(self.built_on))
            write_table(tested.folder / GATES, long(frame.rename_axis("layer")))
            heat_map(frame, tested.folder / "gates.png", f"{task}: gate weights", down="layer")
        block |= {
            "test_runtime": tested.seconds,
            "test_samples_per_second": len(tested.test.inputs) / tested.seconds,
        }
        write_text(tested.folder / "test_metrics.txt", block_text(block))
        if not config.quiet:
            print(block_text(block))
        return block


@torch.no_grad()
def measure(
    backbone: Backbone, delta: PemtDelta, encoded: Encoded, batch_size: int, over_batches: bool
) -> tuple[float, Tensor | None]:
    """Mean loss of the lines, with the sparsity term, and for stage 2 the mean gates (layers, E).

    Gates are averaged over lines; in the original over batches, a smaller last batch counting as much: `over_batches`.
    A line has the loss of its batch.
    """
    backbone.model.eval()
    losses, gates, lines = [], [], []
    for batch in scoring_batches(encoded, batch_size, backbone.pad):
        loss = member_losses(delta, batch) + delta.extra_loss()
        losses.append(float(loss))
        lines.append(float(len(batch.labels)))
        if (own := delta.gates()) is not None:
            gates.append(own.mean(1).cpu())
    weights = torch.tensor(lines) / sum(lines)
    share = torch.full_like(weights, 1 / len(lines)) if over_batches else weights
    mean = torch.einsum("n,nle->le", share, torch.stack(gates)) if gates else None
    return float(weights @ torch.tensor(losses)), mean


def layer_names(delta: PemtDelta) -> list[str]:
    """encoder 0, ..., decoder 0, ...: in the order of `PemtDelta.gates`."""
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
