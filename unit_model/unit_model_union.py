"""Union: one delta for every target, tuned on the lines of all other tasks together (a multi-task source).

    theta_i = argmin over theta of the token loss on the first lines of the full training files of all tasks j != i

The rival that has the sources' data instead of their deltas: a source without lines is refused by its name. All targets are
members of one stack, from the same random init, with `--train_iters` updates, and no selection by dev score, as the tasks have
metrics of their own. So it costs as many updates as the sources themselves, once more for every seed. Of several learning
rates or batch sizes the first is taken. An interrupted call goes on after the last `--log_interval` updates.
"""

import pewe_environment  # noqa: F401

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from pewe.identity import deciding, model_digest, part, state_digest
from pewe.merging.few_shot import attached
from pewe.merging.save import EnsembleConfig, Part, ensemble_sources, ensemble_tasks, save
from pewe.merging.weights import allowed_sources
from pewe.meter import count
from pewe.progress import Bar
from pewe.setting import LIMIT_TRAIN_ITERS, TASK_LIST
from pewe.state import DeltaState
from pewe.tuning.choices import OURS
from pewe.tuning.config import TrainConfig, UpdateConfig
from pewe.tuning.member import Member, read_resume
from pewe.tuning.plan import check_batches
from pewe.tuning.scalars import check_report
from pewe.tuning.session import Session

delta = "adapter"
union_lines = 200
train_iters = 450
learning_rate_list = [6e-3]
bsz_list = [16]
max_grad_norm = 1.0
save_ckpt_path = "checkpoints/adapter/Union"


@dataclass(frozen=True)
class Config(EnsembleConfig, BackboneConfig, DataConfig, SizeConfig, UpdateConfig):
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
    source_ckpt_path: str = flag("", "no delta is read; of a list the names, which must have lines", decides=False)
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def checked(config: Config) -> Config:
    """The configuration with at most as many updates as PEWE_LIMIT_TRAIN_ITERS says. Raises UserError for what cannot be."""
    check_batches(config.bsz_list[:1], config.micro_batch_size)
    check_report(config.report_to)
    if config.train_epochs:
        raise UserError("--train_epochs: the unions of a stack differ in their lines; give --train_iters")
    return replace(config, train_iters=min(config.train_iters, LIMIT_TRAIN_ITERS or config.train_iters))


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
    return replace(encoded, **cut)


def members_of(config: Config, delta: Tunable, unions: Mapping[str, Encoded], made_from: Mapping) -> list[Member]:
    """A run for the union of each target, going on where an earlier call has left all of them, which counts as done here."""
    delta.initialise([f"{config.seed}"] * len(unions))
    batch, rate, folder = config.bsz_list[0], config.learning_rate_list[0], Path(config.save_ckpt_path)
    members = []
    for (target, one), init in zip(unions.items(), delta.states(), strict=True):
        settings = {**deciding(config), **made_from, "target": target, "init": state_digest(init)}
        members.append(Member(one.task, "", one, one, batch, rate, folder / f"without_{target}", init, settings, {}))
    saved = [read_resume(member.resume_file, member.settings) for member in members]
    if all(saved) and len({one["progress"].updates for one in saved}) == 1:
        for member, one in zip(members, saved, strict=True):
            member.saved, member.progress = one, one["progress"]
            count(one["progress"].lines, one["progress"].updates, one["progress"].seconds)
    return members


def tuned(config: Config, backbone: Backbone, delta: Tunable, members: list[Member], bar: Bar) -> list[DeltaState]:
    """The delta of each member, in one stack. Raises UserError where one diverges."""
    batch, about = config.bsz_list[0], TrainConfig(**vars(part(config, UpdateConfig)))
    micro, choices = min(batch, config.micro_batch_size), replace(OURS, start_is_scored=False)
    session = Session(backbone, delta, members, about, batch // micro, micro, config.max_output_length, choices)
    session.start()
    bar.update(sum(member.progress.updates for member in members))
    while left := config.train_iters - members[0].progress.updates:
        session.drop_diverged(session.train(min(left, config.log_interval), bar))
        for member in members:
            if member.failed:
                raise UserError(f"{member.task}: {member.failed}")
        session.write_resume_files(delta.states())
    for writer in session.writers:
        writer.close()
    return delta.states()


def run(config: Config) -> None:
    """Unions, deltas and heat map of the shares of the lines."""
    log_to(None, config.quiet)
    tasks = ensemble_tasks(config, TASK_LIST)
    sources, config = ensemble_sources(config, tasks), checked(config)
    allowed = allowed_sources(tasks, sources)
    about, backbone, delta = attached(config)
    tokenizer, parts = backbone.tokenizer, {}
    for source in sources:
        whole = load_split(tokenizer, config, source, chosen_prefixes(config, source)[0], "train")
        parts[source] = first_lines(whole, config.union_lines)
    made_from = {
        "lines": {source: split_digest(encoded) for source, encoded in parts.items()},
        "backbone": model_digest(config.model, config.tokenizer_path),
    }
    members, states, size = [], [], config.stack or 12
    with Bar(total=len(tasks) * config.train_iters, unit="update", disable=config.quiet) as bar:
        for start in range(0, len(tasks), size):
            unions = {task: union(parts, task) for task in tasks[start : start + size]}
            own = members_of(config, delta, unions, made_from)
            states += tuned(config, backbone, delta, own, bar)
            members += own
    W = allowed * torch.tensor([len(one.inputs) for one in parts.values()], dtype=torch.float64)
    W = W / W.sum(1, keepdim=True)
    title = f"{config.delta}: shares of the lines of a union"
    save(config, [Part(tasks, sources, W, title, states)], made_from, delta_identity(about))
    for member in members:
        member.resume_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main(run, Config, __doc__)
