"""TextEmb: how alike the inputs of two tasks read to the frozen backbone (TextEmb of Vu et al. 2020, "Exploring and
Predicting Transferability across NLP Tasks"). No delta is needed, so the measure is the same for every kind.

    S[i, j] = cos(e_i, e_j),    e = mean over lines of the mean over tokens of the encoder's output      higher is more similar

e_i is of the dev inputs of target i, e_j of the first training inputs of source j (`--full_train`, the default: of its
full training file). Inputs are those that tuning sees, with the task's name in front.
"""

import pewe_environment  # noqa: F401

from collections.abc import Mapping
from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.backbone import Backbone, load_backbone
from pewe.data import Encoded
from pewe.forward import T5
from pewe.no_delta import NoDelta
from pewe.packing import Layout
from pewe.similarity.loop import run
from pewe.similarity.tasks import OfTasks, Reader, TasksConfig


@torch.no_grad()
def embedding(backbone: Backbone, config: TasksConfig, encoded: Encoded) -> Tensor:
    """Mean over the first lines of the mean encoder state of a line's tokens, (d,), float64."""
    backbone.model.eval()
    t5, total = T5(NoDelta(backbone.model)), 0.0
    inputs = encoded.inputs[: config.text_lines]
    for start in range(0, len(inputs), config.predict_batch_size):
        rows = inputs[start : start + config.predict_batch_size]
        lengths = torch.tensor([len(row) for row in rows], device=backbone.device)
        ids = torch.tensor([token for row in rows for token in row], device=backbone.device)
        states, layout = t5.encode(ids, Layout(lengths, [len(rows)]))
        total = total + (layout.mean(0).double() @ states.double()).sum(0)
    return total / len(inputs)


def reader(config: TasksConfig) -> Reader:
    """A task as its embedding, (d,)."""
    backbone = load_backbone(config)
    return Reader(backbone.tokenizer, partial(embedding, backbone, config))


def cosines(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> Tensor:
    """(d,) of each of T targets and n sources give (T, n)."""
    unit = [torch.nn.functional.normalize(torch.stack(list(rows.values())), dim=1) for rows in (targets, sources)]
    return unit[0] @ unit[1].T


MEASURE = OfTasks("TextEmb", True, TasksConfig, reader, cosines, unread=("max_output_length",)).measure()

if __name__ == "__main__":
    main(partial(run, MEASURE), MEASURE.config, __doc__)
