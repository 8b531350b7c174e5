"""TextEmb: how alike the inputs of two tasks read to the frozen backbone (TextEmb of Vu et al. 2020, "Exploring and
Predicting Transferability across NLP Tasks"). No delta is needed, so the measure is the same for every kind.

    S[i, j] = cos(e_i, e_j),    e = mean over lines of the mean over tokens of the encoder's output      higher is more similar

e_i is of the dev inputs of target i, e_j of the first training inputs of source j (`--full_train`, the default: of its
full training file). Inputs are those that tuning sees, with the task's name in front.
"""

import pewe_environment  # noqa: F401

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import pandas as pd
import torch
from torch import Tensor

from pewe.backbone import Backbone, BackboneConfig, load_backbone
from pewe.cli import log_settings, log_to
from pewe.data import Encoded, TaskConfig, load_split, sampled_prefixes, split_digest, task_names
from pewe.files import hold, provenance
from pewe.flags import check, flag
from pewe.forward import T5
from pewe.identity import model_digest
from pewe.no_delta import NoDelta
from pewe.packing import Layout
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.matrix import Matrix
from pewe.similarity.measure import Measure

NAME = "TextEmb"


@dataclass(frozen=True)
class TextEmbConfig(BackboneConfig, TaskConfig):
    """Similarity of the texts of two tasks."""

    ignored = SimilarityConfig
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)", unique=True)
    output_dir: str = flag("checkpoints/adapter/similarity/TextEmb", "folder of result.tsv", decides=False)
    full_train: bool = flag(True, "the sources' texts are those of <task>_full_train.tsv, not of the few-shot file")
    text_lines: int = flag(100, "lines of a task at most, of the beginning of the file", low=1)
    predict_batch_size: int = flag(50, "lines per forward", decides=False, low=1)
    pictures: bool = flag(True, "draw a heat map", decides=False)
    quiet: bool = flag(False, "warnings only", decides=False)


@torch.no_grad()
def embedding(backbone: Backbone, encoded: Encoded, lines: int, batch_size: int) -> Tensor:
    """Mean over the first lines of the mean encoder state of a line's tokens, (d,), float64."""
    backbone.model.eval()
    t5, total = T5(NoDelta(backbone.model)), 0.0
    inputs = encoded.inputs[:lines]
    for start in range(0, len(inputs), batch_size):
        rows = inputs[start : start + batch_size]
        lengths = torch.tensor([len(row) for row in rows], device=backbone.device)
        ids = torch.tensor([token for row in rows for token in row], device=backbone.device)
        states, layout = t5.encode(ids, Layout(lengths, [len(rows)]))
        total = total + (layout.mean(0).double() @ states.double()).sum(0)
    return total / len(inputs)


def cosines(targets: Tensor, sources: Tensor) -> Tensor:
    """(T, d) and (n, d) give (T, n)."""
    return torch.nn.functional.normalize(targets, dim=1) @ torch.nn.functional.normalize(sources, dim=1).T


def run(config: TextEmbConfig) -> pd.DataFrame:
    """Compute the similarity matrix; returns the table that it writes."""
    check(config)
    out = Path(config.output_dir)
    with hold(out):
        log_to(out / "log.txt", config.quiet)
        log_settings(config)
        return _matrix(config, out)


def _matrix(config: TextEmbConfig, out: Path) -> pd.DataFrame:
    backbone = load_backbone(config)
    texts = {
        split: {name: _split(backbone, config, name, split) for name in names}
        for split, names in (
            ("dev", task_names(config, scored=False)),
            ("train", task_names(config, "source_tasks", scored=False)),
        )
    }
    record = {
        "settings": identity(config, texts),
        "measure": NAME,
        "higher_is_more_similar": True,
        "provenance": provenance(),
    }
    targets, sources = (
        torch.stack(
            [embedding(backbone, encoded, config.text_lines, config.predict_batch_size) for encoded in own.values()]
        )
        for own in texts.values()
    )
    rows = Matrix(out, record, list(texts["dev"]), list(texts["train"]))
    for target, row in zip(texts["dev"], cosines(targets, sources).tolist(), strict=True):
        rows.add(target, list(texts["train"]), {"all": row})
    return rows.finish(config.pictures)


def _split(backbone: Backbone, config: TextEmbConfig, task: str, split: str) -> Encoded:
    return load_split(backbone.tokenizer, config, task, sampled_prefixes(config, task)[0], split)


def identity(config: TextEmbConfig, texts: Mapping[str, Mapping[str, Encoded]]) -> dict:
    """What decides a value of the matrix."""
    return {
        "measure": NAME,
        "text_lines": config.text_lines,
        "max_input_length": config.max_input_length,
        "dtype": config.dtype,
        "backbone": model_digest(config.model, config.tokenizer_path),
        **{split: {name: split_digest(encoded) for name, encoded in own.items()} for split, own in texts.items()},
    }


MEASURE = Measure(NAME, None, higher_is_more_similar=True, config=TextEmbConfig, matrix=run)

if __name__ == "__main__":
    main(run, TextEmbConfig, __doc__)
