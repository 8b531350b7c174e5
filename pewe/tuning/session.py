"""Few-shot tuning of a stack of deltas in lockstep over one frozen backbone.

Each member has its own data order, gradient clip, Adafactor statistics, learning rate, best dev score, early stop,
checkpoint and resume file; its result is that of tuning it alone. A member that has finished leaves the stack.
"""

import dataclasses
import math
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from pewe import identity
from pewe.backbone import Backbone
from pewe.batches import collate_stack, training_updates
from pewe.cli import log
from pewe.deltas.checkpoint import save_together
from pewe.deltas.tunable import Tunable
from pewe.dropout import OwnStreams
from pewe.flags import SEED
from pewe.losses import member_losses
from pewe.meter import Work, count, so_far
from pewe.progress import Bar
from pewe.state import DeltaState
from pewe.tuning.choices import OURS, Choices
from pewe.tuning.config import TrainConfig
from pewe.tuning.evaluate import evaluate, outcomes
from pewe.tuning.member import Member, write_best
from pewe.tuning.optimizers import (
    clip_gradients,
    keep_members,
    load_statistics,
    make_optimizer,
    rate_factor,
    stacked_rates,
    statistics_of,
)
from pewe.tuning.scalars import Report


def fit(
    backbone: Backbone,
    delta: Tunable,
    members: Sequence[Member],
    config: TrainConfig,
    accumulate: int,
    batch_size: int,
    max_length: int,
    choices: Choices = OURS,
    quiet: bool = False,
) -> None:
    """Tune all members, which must have the same number of updates behind them, to the end.

    `batch_size` is that of a micro-batch. Writes `checkpoint-best.pt` and `resume.pt` of every member at each
    validation, and leaves the result in `member.progress`. A member whose loss or tensors are no longer finite leaves the
    stack with the cause in `member.failed`.
    """
    session = Session(backbone, delta, list(members), config, accumulate, batch_size, max_length, choices)
    planned = config.train_iters * len(members)
    done = sum(member.progress.updates for member in members)
    stops = config.early_stop * config.valid_interval < config.train_iters
    desc = f"at most (stops after {config.early_stop} validations without improvement)" if stops else None
    look = {"unit": "update", "disable": quiet, "smoothing": 0.05, "parts": len(members), "desc": desc}
    with Bar(total=planned, initial=done, **look) as bar:
        session.start()
        while session.members:
            steps = min(config.valid_interval, config.train_iters - session.members[0].progress.updates)
            losses = session.drop_diverged(session.train(steps, bar))
            left = session.retire()
            if session.members:
                session.validate(losses)
                left += session.retire()
            bar.total -= sum(config.train_iters - member.progress.updates for member in left)
            bar.refresh()


class Session:
    """The state of one lockstep: the members still in the stack, their optimiser and their data streams."""

    def __init__(
        self,
        backbone: Backbone,
        delta: Tunable,
        members: list[Member],
        config: TrainConfig,
        accumulate: int,
        batch_size: int,
        max_length: int,
        choices: Choices = OURS,
    ):
        self.backbone, self.delta, self.members, self.config = backbone, delta, members, config
        self.accumulate, self.max_length, self.choices = accumulate, max_length, choices
        self.streams = []
        for member in members:
            seed = f"{config.seed}/{member.task}"
            stream = training_updates(member.train, seed, batch_size, accumulate, choices.full_updates)
            self.streams.append(islice(stream, member.progress.updates, None))
        self.writers = [Report(config.report_to, m.folder, m.progress.updates, m.settings) for m in members]

    def start(self) -> None:
        """Load inits or resume files; the starting delta may be a candidate for the best checkpoint."""
        resumed = [member.saved for member in self.members]
        self.delta.load([saved["delta"] if saved else m.init for saved, m in zip(resumed, self.members, strict=True)])
        rates = [member.learning_rate for member in self.members]
        self.optimizer = make_optimizer(self.delta, rates, self.config.optimizer)
        if all(resumed):
            slices = [saved["optimizer"] for saved in resumed]
            load_statistics(self.optimizer, slices, self.members[0].progress.updates, self.delta.stacked)
            for member in self.members:
                member.saved = None  # no longer needed
            return
        before = so_far()
        self.trace(0)
        self._note(so_far() - before)
        if self.choices.start_is_scored:
            self.validate([float("nan")] * len(self.members))

    def trace(self, updates: int) -> None:
        """Note in every member how it does on its test lines after so many updates, where --trace_test asks for it."""
        if updates in self.config.trace_test:
            tests, names = [member.test for member in self.members], [member.metric for member in self.members]
            points = outcomes(self.backbone, self.delta, tests, names, self.config.predict_batch_size, self.max_length)
            for member, point in zip(self.members, points, strict=True):
                member.progress.trace.append({"point": str(updates), "updates": updates, **point})
            self.backbone.model.train()

    def train(self, steps: int, bar: Bar) -> list[float]:
        """`steps` updates of every member; returns the mean training loss of each."""
        self.backbone.model.train()
        before, total, since_log = so_far(), 0.0, 0.0
        for step in range(1, steps + 1):
            losses = self._update(self.members[0].progress.updates + step)
            total, since_log = total + losses, since_log + losses
            bar.update(len(self.members))
            self.trace(self.members[0].progress.updates + step)
            if step % self.config.log_interval == 0 or step == steps:
                count = (step - 1) % self.config.log_interval + 1
                self._log_losses((since_log / count).tolist(), step, bar)
                since_log = 0.0
        means = (total / steps).tolist()
        for member in self.members:
            member.progress.updates += steps
        self._note(so_far() - before)
        return means

    def _note(self, spent: Work) -> None:
        """Every member has its share of what the stack has cost."""
        for member in self.members:
            member.progress.seconds += spent.seconds / len(self.members)
            member.progress.lines += spent.lines / len(self.members)

    def _update(self, number: int) -> Tensor:
        dropout = self._dropout(number)
        factor = rate_factor(self.config, number)
        rates = [member.learning_rate * factor for member in self.members]
        self.optimizer.param_groups[0]["lr"] = stacked_rates(rates, self.backbone.device)
        windows = [next(stream) for stream in self.streams]
        total = torch.zeros(len(self.members), device=self.backbone.device)
        for micro in range(max(map(len, windows))):
            rows = [window[micro] if micro < len(window) else [] for window in windows]
            batch = collate_stack(rows, self.backbone.pad)
            losses = member_losses(self.delta, batch, dropout) + self.delta.extra_loss()
            (losses.sum() / self.accumulate).backward()
            total += losses.detach()
        self.norms = clip_gradients(self.delta, self.config.max_grad_norm)
        self.optimizer.step()
        count(updates=len(self.members))
        self.optimizer.zero_grad(set_to_none=True)
        return total / torch.tensor([len(window) for window in windows], device=total.device)

    def _dropout(self, number: int) -> OwnStreams | None:
        """The dropout of an update: of every member from its own stream, or torch's, of seed and update."""
        torch.manual_seed((self.config.seed * 1_000_003 + number) % SEED)  # of a prompt too
        if not self.choices.own_dropout:
            return None
        seeds = [f"{self.config.seed}/{member.task}/{number}" for member in self.members]
        return OwnStreams(self.backbone.model.config.dropout_rate, seeds, self.backbone.device)

    def _log_losses(self, losses: list[float], step: int, bar: Bar) -> None:
        factor, norms = rate_factor(self.config, self.members[0].progress.updates + step), self.norms.tolist()
        for member, writer, loss, norm in zip(self.members, self.writers, losses, norms, strict=True):
            writer.add_scalar("train/loss", loss, member.progress.updates + step)
            writer.add_scalar("train/learning_rate", member.learning_rate * factor, member.progress.updates + step)
            writer.add_scalar("train/gradient_norm", norm, member.progress.updates + step)  # before the clip
            if not math.isfinite(loss):
                log.warning(
                    "%s: the training loss is %s at update %d", member.folder, loss, member.progress.updates + step
                )
        best = sum(member.progress.best or 0.0 for member in self.members) / len(self.members)
        bar.set_postfix(deltas=len(losses), loss=f"{sum(losses) / len(losses):.3f}", best_dev=f"{best:.3f}")

    def drop_diverged(self, losses: list[float]) -> list[float]:
        """Note the cause in every member whose loss or tensors are not finite; returns the losses of the others."""
        finite = torch.stack(
            [torch.isfinite(p).reshape(len(losses), -1).all(1) for p in self.delta.named.values()]
        ).all(0)
        for member, loss, sound in zip(self.members, losses, finite.tolist(), strict=True):
            if not (sound and math.isfinite(loss)):
                what = f"the training loss is {loss}" if sound else "its tensors are not finite"
                member.failed = f"diverged: {what} at update {member.progress.updates}; try a smaller learning rate"
        return [loss for member, loss in zip(self.members, losses, strict=True) if not member.failed]

    def validate(self, losses: list[float]) -> None:
        """Dev score of every member; write the resume files, then the better checkpoints, which they hold too."""
        before = so_far()
        scores = evaluate(
            self.backbone,
            self.delta,
            [m.dev for m in self.members],
            [m.metric for m in self.members],
            self.config.predict_batch_size,
            self.max_length,
        )
        self._note(so_far() - before)
        states, better = self.delta.states(), []
        for member, writer, score, loss, state in zip(self.members, self.writers, scores, losses, states, strict=True):
            progress = member.progress
            progress.history.append({"updates": progress.updates, "loss": loss, "dev": score})
            writer.add_scalar(f"dev/{member.metric}", score, progress.updates)
            if (progress.updates or self.config.start_is_candidate) and self._compare(member, score, state):
                better.append(member)
            progress.finished = progress.updates >= self.config.train_iters or (
                progress.without_improvement >= self.config.early_stop
            )
        self.write_resume_files(states)
        for member in better:
            write_best(member)

    def _compare(self, member: Member, score: float, state: DeltaState) -> bool:
        """Whether the state is the best so far; a score that is not defined is better than none only."""
        progress = member.progress
        if progress.best is None:
            better = True
        elif not self.choices.first_of_equals:
            better = not progress.best > score
        else:
            better = score > progress.best or (math.isnan(progress.best) and not math.isnan(score))
        if better:
            member.best = state
            progress.best, progress.best_updates, progress.without_improvement = score, progress.updates, 0
        elif progress.updates:
            progress.without_improvement += 1
        return better

    def write_resume_files(self, states: Sequence[DeltaState]) -> None:
        """Where every member stands, these being their states."""
        files = {}
        for k, (member, state) in enumerate(zip(self.members, states, strict=True)):
            files[member.resume_file] = saved = {
                "settings": member.settings,
                "delta": state,
                "best": member.best,
                "optimizer": statistics_of(self.optimizer, k, self.delta.stacked),
                "progress": dataclasses.asdict(member.progress),
            }
            saved[identity.PROVENANCE] = {name: saved["progress"].pop(name) for name in ("seconds", "lines")}
        save_together(files)

    def retire(self) -> list[Member]:
        """Take the members that have finished or failed out of the stack; returns them."""
        going = [k for k, member in enumerate(self.members) if member.progress.finished or member.failed]
        staying = [k for k in range(len(self.members)) if k not in going]
        left = [self.members[k] for k in going]
        for k, member in zip(going, left, strict=True):
            self.writers[k].close()
            if not member.failed:
                log.info(
                    "%s: best dev %.4f after %d of %d updates",
                    member.folder,
                    member.progress.best,
                    member.progress.best_updates,
                    member.progress.updates,
                )
        if going and staying:
            index = torch.tensor(staying, device=self.backbone.device)
            self.delta.keep(index)
            keep_members(self.optimizer, index)
        self.members, self.streams, self.writers = (
            [items[k] for k in staying] for items in (self.members, self.streams, self.writers)
        )
        return left
