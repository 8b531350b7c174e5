"""Union: one delta for every target, tuned on the lines of all other tasks together (a multi-task source).

    theta_i = argmin over theta of the token loss on the first lines of the full training files of all tasks j != i

The rival that has the sources' data instead of their deltas. All targets are members of one stack, from the same random init,
with `--train_iters` updates, and no selection by dev score, as the tasks have metrics of their own. So it costs as many updates
as the sources themselves, once more for every seed. Of several learning rates or batch sizes the first is taken.
"""

import pewe_environment  # noqa: F401

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import torch

from pewe.backbone import Backbone, BackboneConfig
from pewe.cli import log_to
from pewe.data import DataConfig, Encoded, chosen_prefixes, load_split, split_digest
from pewe.deltas.checkpoint import delta_identity
from pewe.deltas.config import SizeConfig
from pewe.deltas.tunable import Tunable
from pewe.errors import UserError
from pewe.flags import flag
from pewe.identity import model_digest
from pewe.merging.few_shot import attached
from pewe.merging.save import EnsembleConfig, Part, ensemble_tasks, save
from pewe.merging.weights import allowed_sources
from pewe.progress import Bar
from pewe.setting import TASK_LIST
from pewe.state import DeltaState
from pewe.tuning.choices import OURS
from pewe.tuning.config import TrainConfig
from pewe.tuning.member import Member
from pewe.tuning.session import Session

delta = "adapter"
union_lines = 200
train_iters = 450
learning_rate_list = [6e-3]
bsz_list = [16]
max_grad_norm = 1.0
save_ckpt_path = "checkpoints/adapter/Union"


@dataclass(frozen=True)
class Config(EnsembleConfig, BackboneConfig, DataConfig, SizeConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    combine: str = flag("average", "nothing is combined", choices=("average",))
    full_train: bool = flag(True, "the lines are those of <task>_full_train.tsv, not of the few-shot file")
    union_lines: int = flag(union_lines, "training lines of each task at most, of the beginning of the file", low=1)
    train_iters: int = flag(train_iters, "updates", low=1)
    learning_rate_list: list[float] = flag(learning_rate_list, "learning rate; the first counts", above=0, unique=True)
    bsz_list: list[int] = flag(bsz_list, "lines of an update; the first counts", low=1, unique=True)
    max_grad_norm: float = flag(max_grad_norm, "gradient clip over all parameters of one delta", above=0)
    stack: int = flag(
        12, "targets tuned in lockstep; auto (0): 12", decides=False, low=0, high=2**12, words={"auto": 0}
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def union(parts: Mapping[str, Encoded], target: str) -> Encoded:
    """The lines of all tasks but the target, task after task; tuning shuffles them."""
    others = [encoded for task, encoded in parts.items() if task != target]
    joined = {
        name: tuple(x for one in others for x in getattr(one, name)) for name in ("examples", "inputs", "outputs")
    }
    return Encoded(f"all but {target}", **joined)


def first_lines(encoded: Encoded, count: int) -> Encoded:
    """The beginning of a split."""
    cut = {name: getattr(encoded, name)[:count] for name in ("examples", "inputs", "outputs")}
    return dataclasses.replace(encoded, **cut)


def tuned(config: Config, backbone: Backbone, delta: Tunable, unions: Sequence[Encoded], bar: Bar) -> list[DeltaState]:
    """A delta for each union, in one stack. Raises UserError where one diverges."""
    delta.initialise([f"{config.seed}"] * len(unions))
    batch, rate, folder = config.bsz_list[0], config.learning_rate_list[0], Path(config.save_ckpt_path)
    members = [
        Member(one.task, "", one, one, batch, rate, folder / one.task.replace(" ", "_"), state, {}, {})
        for one, state in zip(unions, delta.states(), strict=True)
    ]
    about = TrainConfig(seed=config.seed, train_iters=config.train_iters, max_grad_norm=config.max_grad_norm)
    choices = dataclasses.replace(OURS, start_is_scored=False)
    session = Session(backbone, delta, members, about, 1, batch, config.max_output_length, choices)
    session.start()
    session.drop_diverged(session.train(config.train_iters, bar))
    for member in members:
        if member.failed:
            raise UserError(f"{member.task}: {member.failed}")
    for writer in session.writers:
        writer.close()
    return delta.states()


def run(config: Config) -> None:
    """Unions, deltas and heat map of the shares of the lines."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    allowed = allowed_sources(tasks, tasks)
    about, backbone, delta = attached(config)
    tokenizer, parts = backbone.tokenizer, {}
    for task in tasks:
        whole = load_split(tokenizer, config, task, chosen_prefixes(config, task)[0], "train")
        parts[task] = first_lines(whole, config.union_lines)
    counts = torch.tensor([len(parts[task].inputs) for task in tasks], dtype=torch.float64)
    W = allowed * counts
    W = W / W.sum(1, keepdim=True)
    states, size = [], config.stack or 12
    with Bar(total=len(tasks) * config.train_iters, unit="update", disable=config.quiet) as bar:
        for start in range(0, len(tasks), size):
            unions = [union(parts, task) for task in tasks[start : start + size]]
            states += tuned(config, backbone, delta, unions, bar)
    made_from = {
        "lines": {task: split_digest(encoded) for task, encoded in parts.items()},
        "backbone": model_digest(config.model, config.tokenizer_path),
    }
    part = Part(tasks, tasks, W, f"{config.delta}: shares of the lines of a union", states)
    save(config, [part], made_from, delta_identity(about))


if __name__ == "__main__":
    main(run, Config, __doc__)
