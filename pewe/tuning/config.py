"""The flags of tuning."""

from dataclasses import dataclass

from pewe.data import DataConfig
from pewe.deltas.config import DeltaConfig
from pewe.deltas.kinds import KINDS
from pewe.flags import SeedConfig, flag
from pewe.model_files import BackboneConfig

OPTIMIZERS = ("adafactor", "adamw")
NOWHERE = "none"  # as --report_to
REPORT_TO = ("tensorboard", "wandb", NOWHERE)
LR_DECAY_STYLES = ("constant", "constant_with_warmup", "linear")


@dataclass(frozen=True)
class UpdateConfig(SeedConfig):
    """How the updates of one delta are made; the defaults are the paper's."""

    train_iters: int = flag(100_000, "updates at most", low=1)
    train_epochs: int = flag(
        0, "passes over the training lines, a validation after each, instead of train_iters", low=0
    )
    warmup_steps: int = flag(200, "warm-up updates; the default --lr_decay_style does not look at them", low=0)
    lr_decay_style: str = flag(
        "constant",
        "constant (as the original, which ignores warmup_steps), constant_with_warmup, or linear to 0",
        choices=LR_DECAY_STYLES,
    )
    optimizer: str = flag(
        "adafactor", "adafactor, or adamw (PEMT's: betas 0.9 and 0.999, no weight decay)", choices=OPTIMIZERS
    )
    micro_batch_size: int = flag(
        16, "a larger batch is cut into micro-batches of this size, gradients accumulated", low=1
    )
    max_grad_norm: float = flag(0.1, "gradient clip over all parameters of one delta", above=0)
    log_interval: int = flag(100, "updates between two log entries of the training loss", decides=False, low=1)
    report_to: list[str] = flag(
        ["tensorboard"],
        f"where the curves of a run go: {', '.join(REPORT_TO)}, as in the Trainer of transformers",
        decides=False,
        choices=REPORT_TO,
        unique=True,
    )


@dataclass(frozen=True)
class TrainConfig(UpdateConfig):
    """How one delta is tuned, and which of its steps is taken."""

    valid_interval: int = flag(100, "updates between two validations", low=1)
    early_stop: int = flag(10, "stop after this many validations without improvement", low=1)
    predict_batch_size: int = flag(80, "dev and test lines per forward and delta", low=1)
    trace_test: list[int] = flag(
        [],
        "updates (0: the start) after which the test lines are scored too; there and of the best step, their log-likelihood",
        low=0,
        unique=True,
    )
    start_is_candidate: bool = flag(True, "the starting delta competes for the best checkpoint")


@dataclass(frozen=True)
class TuneConfig(BackboneConfig, DataConfig, DeltaConfig, TrainConfig):
    """Few-shot tuning of each target task."""

    do_train: bool = flag(False, "tune")
    do_predict: bool = flag(False, "test the best checkpoint of each run, or --test_checkpoint where nothing is tuned")
    learning_rate_list: list[float] = flag([5e-4], "learning rates; each is a run", above=0, high=1e38, unique=True)
    bsz_list: list[int] = flag([8], "batch sizes; each is a run", low=1, unique=True)
    output_dir: str = flag("checkpoints/adapter", "folder of runs, log and result.tsv", decides=False)
    train_checkpoint: str = flag(
        "", "folder of ensembles, DIR/without_<task>_checkpoint.pt: init (default: random)", decides=False
    )
    common_init: bool = flag(
        False,
        "where deltas begin at random: all tasks with the same, of the seed alone; it is stored as <output_dir>/common_init.pt",
    )
    test_checkpoint: str = flag(
        "", "checkpoint file, or folder with <task>/checkpoint-best.pt, to test without tuning", decides=False
    )
    stack: int = flag(
        1,
        "runs of equal batch size tuned in lockstep over one backbone, fewer where memory is short; auto (0): at most 24",
        decides=False,
        low=0,
        high=2**12,
        words={"auto": 0},
    )
    quiet: bool = flag(False, "warnings only, no progress bar", decides=False)

    @property
    def largest_stack(self) -> int:
        """Runs of a stack at most: beyond 24 nothing is gained."""
        return self.stack or (24 if KINDS[self.tune_method].stacks else 1)


@dataclass(frozen=True)
class TuneAllConfig(TuneConfig):
    """Every source on every target."""

    source_ckpt_path: str = flag(
        "checkpoints/adapter/full_data", "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    source_tasks: list[str] = flag([], "names of the sources (default: the targets)", unique=True)
