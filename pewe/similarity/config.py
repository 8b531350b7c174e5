"""The flags that all similarity commands share."""

from dataclasses import dataclass

from pewe.data import TaskConfig
from pewe.deltas.config import ScoredDeltaConfig
from pewe.flags import flag
from pewe.model_files import BackboneConfig
from pewe.tuning.config import TuneConfig


@dataclass(frozen=True)
class TargetDeltas:
    """Where they lie, for a measure that needs them (`needs_target`)."""

    ignored = TuneConfig
    random_tuned_ckpt_path: str = flag(
        "", "folder with <target>/checkpoint-best.pt tuned from random init", decides=False
    )


@dataclass(frozen=True)
class SimilarityConfig(BackboneConfig, TaskConfig, ScoredDeltaConfig):
    """Similarity of each source delta to each target, on the target's dev set."""

    ignored = TargetDeltas  # whose further flags are accepted, because the original's scripts give them
    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)", unique=True)
    output_dir: str = flag("checkpoints/adapter/similarity/Loss", "folder of result.tsv", decides=False)
    predict_batch_size: int = flag(50, "dev lines per batch", low=1)
    max_batches: int = flag(0, "dev batches used per target; 0: as many as the original, -1: all", low=-1)
    reduction: str = flag("sum", "sum or mean over the batches used", choices=("sum", "mean"))
    stack: int = flag(0, "sources scored in one forward; 0: as many as memory allows", decides=False, low=0, high=2**12)
    pictures: bool = flag(True, "draw a heat map of every scope", decides=False)
    quiet: bool = flag(False, "warnings only, no progress bar", decides=False)


@dataclass(frozen=True)
class TargetConfig(TargetDeltas, SimilarityConfig):
    """The same of a measure that compares with deltas tuned on the targets."""
