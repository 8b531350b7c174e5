"""Few-shot tuning of a stack of deltas in lockstep over one frozen backbone.

Each member has its own data order, gradient clip, Adafactor statistics, learning rate, best dev score, early stop,
checkpoint and resume file; its result is that of tuning it alone. A member that has finished leaves the stack.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Adafactor

from pewe import identity
from pewe.backbone import Backbone
from pewe.checkpoint import BEST, save_sealed, write_checkpoint
from pewe.cli import SEED, SeedConfig, flag, log
from pewe.data import Encoded, collate_stack, training_updates
from pewe.deltas import Delta, DeltaState
from pewe.dropout import OwnStreams
from pewe.evaluate import evaluate, log_likelihoods
from pewe.forward import member_losses
from pewe.scalars import Scalars

OPTIMIZERS = ("adafactor", "adamw")
LR_DECAY_STYLES = ("constant", "constant_with_warmup", "linear")


@dataclass
class TrainConfig(SeedConfig):
    """How one delta is tuned; the defaults are the paper's."""

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
    valid_interval: int = flag(100, "updates between two validations", low=1)
    log_interval: int = flag(100, "updates between two log entries of the training loss", decides=False, low=1)
    early_stop: int = flag(10, "stop after this many validations without improvement", low=1)
    predict_batch_size: int = flag(80, "dev and test lines per forward and delta", low=1)
    micro_batch_size: int = flag(
        16, "a larger batch is cut into micro-batches of this size, gradients accumulated", low=1
    )
    max_grad_norm: float = flag(0.1, "gradient clip over all parameters of one delta", above=0)
    trace_test: list[int] = flag(
        [],
        "updates (0: the start) after which the test lines are scored too; there and of the best step, their log-likelihood",
        low=0,
        unique=True,
    )
    start_is_candidate: bool = flag(True, "the starting delta competes for the best checkpoint")


@dataclass
class Progress:
    """What a run has reached; stored in its resume file at every validation."""

    updates: int = 0
    best: float | None = None  # none yet; NaN where no score so far is defined
    best_updates: int = 0
    without_improvement: int = 0
    finished: bool = False
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)  # updates, train loss since the last one, dev
    trace: list[dict] = field(default_factory=list)  # point, updates, test, log_likelihood (--trace_test)


@dataclass
class Member:
    """One run: a task's data, a learning rate, and the folder of its checkpoint and resume file.

    `settings` are all that decides its result; `args` go into its checkpoint.
    """

    task: str
    metric: str
    train: Encoded
    dev: Encoded
    batch_size: int
    learning_rate: float
    folder: Path
    init: DeltaState
    settings: dict
    args: dict
    progress: Progress = field(default_factory=Progress)
    resumes: bool = False  # goes on from its resume file
    saved: dict | None = None  # the content of that
    best: DeltaState | None = None
    failed: str = ""  # the cause
    test: Encoded | None = None  # --trace_test

    @property
    def resume_file(self) -> Path:
        """Current delta, optimiser statistics and progress at the last validation."""
        return self.folder / "resume.pt"


class StackedAdafactor(Adafactor):
    """Adafactor on tensors (K, ...) whose leading axis is the stack: the update of each member is clipped by its own RMS.

    The factored statistics are taken over the last two axes, so they are per member already. The learning rate may be a
    tensor (K, 1, 1).
    """

    @staticmethod
    def _rms(tensor: Tensor) -> Tensor:
        return tensor.flatten(1).norm(dim=1).div(math.sqrt(tensor[0].numel())).view(-1, *[1] * (tensor.dim() - 1))


class AdamW(torch.optim.Optimizer):
    """Adam without weight decay on tensors of any shape, with the eps of transformers 4.6's AdamW, which PEMT used:

    p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), so that eps is not bias-corrected as in torch's.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: Tensor):
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        group = self.param_groups[0]
        b1, b2 = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            state["step"] += 1
            mean = state["exp_avg"].mul_(b1).add_(parameter.grad, alpha=1 - b1)
            square = state["exp_avg_sq"].mul_(b2).addcmul_(parameter.grad, parameter.grad, value=1 - b2)
            size = group["lr"] * (math.sqrt(1 - b2 ** state["step"]) / (1 - b1 ** state["step"]))
            parameter.sub_(size * mean / (square.sqrt() + group["eps"]))


def make_optimizer(delta: Delta, learning_rates: Sequence[float], name: str = "adafactor") -> torch.optim.Optimizer:
    """One of OPTIMIZERS with a learning rate per member (Adafactor: scale_parameter, relative_step, warmup_init off)."""
    parameters = list(delta.named.values())
    rates = stacked_rates(learning_rates, parameters[0].device)
    if name == "adamw":
        return AdamW(parameters, rates)
    kind = StackedAdafactor if delta.stacked else Adafactor
    return kind(parameters, lr=rates, scale_parameter=False, relative_step=False, warmup_init=False)


def stacked_rates(learning_rates: Sequence[float], device: torch.device) -> Tensor:
    """(K, 1, 1), or a scalar for a stack of one, whose tensors need not be matrices."""
    rates = torch.tensor(learning_rates, device=device)
    return rates.view(-1, 1, 1) if len(rates) > 1 else rates[0]


def rate_factor(config: TrainConfig, update: int) -> float:
    """What the learning rate is multiplied with at an update, 1, 2, ...

    constant_with_warmup: min(1, t / warmup_steps). linear, as in PEMT, with t counted from 0: t / warmup_steps, then
    (train_iters - t) / (train_iters - warmup_steps).
    """
    if config.lr_decay_style == "constant":
        return 1.0
    if config.lr_decay_style == "constant_with_warmup":
        return min(1.0, update / max(1, config.warmup_steps))
    if update <= config.warmup_steps:
        return (update - 1) / config.warmup_steps
    return (config.train_iters - update + 1) / (config.train_iters - config.warmup_steps)


@torch.no_grad()
def clip_gradients(delta: Delta, max_norm: float) -> Tensor:
    """Scale each member's gradient to a norm of at most `max_norm` over all its tensors; the norms before, (K,)."""
    gradients = [p.grad for p in delta.named.values() if p.grad is not None]
    norms = torch.stack([gradient.reshape(delta.stack, -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)) if delta.stacked else scale)
    return norms


def fit(backbone: Backbone, delta: Delta, members: Sequence[Member], config: TrainConfig, accumulate: int,
        batch_size: int, max_length: int, as_original: bool, quiet: bool = False) -> None:  # fmt: skip
    """Tune all members, which must have the same number of updates behind them, to the end.

    `batch_size` is that of a micro-batch. Writes `checkpoint-best.pt` and `resume.pt` of every member at each
    validation, and leaves the result in `member.progress`. A member whose loss or tensors are no longer finite leaves the
    stack with the cause in `member.failed`.
    """
    session = Session(backbone, delta, list(members), config, accumulate, batch_size, max_length, as_original)
    planned = config.train_iters * len(members)
    done = sum(member.progress.updates for member in members)
    with tqdm(total=planned, initial=done, unit="update", disable=quiet, smoothing=0.05) as bar:
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

    def __init__(self, backbone, delta, members, config, accumulate, batch_size, max_length, as_original):
        self.backbone, self.delta, self.members, self.config = backbone, delta, members, config
        self.accumulate, self.max_length, self.as_original = accumulate, max_length, as_original
        self.streams = []
        for member in members:
            stream = training_updates(member.train, f"{config.seed}/{member.task}", batch_size, accumulate, as_original)
            self.streams.append(islice(stream, member.progress.updates, None))
        self.writers = [Scalars(m.folder / "tensorboard", purge_step=m.progress.updates) for m in members]

    def start(self) -> None:
        """Load inits or resume files; the starting delta is a candidate for the best checkpoint (not `as_original`)."""
        resumed = [member.saved for member in self.members]
        self.delta.load([saved["delta"] if saved else m.init for saved, m in zip(resumed, self.members, strict=True)])
        rates = [member.learning_rate for member in self.members]
        self.optimizer = make_optimizer(self.delta, rates, self.config.optimizer)
        if all(resumed):
            slices = [saved["optimizer"] for saved in resumed]
            _load_optimizer(self.optimizer, slices, self.members[0].progress.updates, self.delta.stacked)
            for member in self.members:
                member.saved = None  # no longer needed
            return
        self.trace(0)
        if not self.as_original:
            self.validate([float("nan")] * len(self.members))

    def trace(self, updates: int) -> None:
        """Note in every member how it does on its test lines after so many updates, where --trace_test asks for it."""
        if updates in self.config.trace_test:
            points = outcomes(self.backbone, self.delta, self.members, self.config.predict_batch_size, self.max_length)
            for member, point in zip(self.members, points, strict=True):
                member.progress.trace.append({"point": str(updates), "updates": updates, **point})
            self.backbone.model.train()

    def train(self, steps: int, bar: tqdm) -> list[float]:
        """`steps` updates of every member; returns the mean training loss of each."""
        self.backbone.model.train()
        start, total, since_log = time.perf_counter(), 0.0, 0.0
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
            member.progress.seconds += (time.perf_counter() - start) / len(self.members)
        return means

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
        clip_gradients(self.delta, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total / torch.tensor([len(window) for window in windows], device=total.device)

    def _dropout(self, number: int) -> OwnStreams | None:
        """The dropout of an update: of every member from its own stream; `as_original` torch's, of seed and update."""
        torch.manual_seed((self.config.seed * 1_000_003 + number) % SEED)  # of a prompt too
        if self.as_original:
            return None
        seeds = [f"{self.config.seed}/{member.task}/{number}" for member in self.members]
        return OwnStreams(self.backbone.model.config.dropout_rate, seeds, self.backbone.device)

    def _log_losses(self, losses: list[float], step: int, bar: tqdm) -> None:
        for member, writer, loss in zip(self.members, self.writers, losses, strict=True):
            writer.add_scalar("train/loss", loss, member.progress.updates + step)
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
        start = time.perf_counter()
        scores = evaluate(self.backbone, self.delta, [m.dev for m in self.members], [m.metric for m in self.members],
                          self.config.predict_batch_size, self.max_length)  # fmt: skip
        seconds = (time.perf_counter() - start) / len(self.members)
        states, better = self.delta.states(), []
        for member, writer, score, loss, state in zip(self.members, self.writers, scores, losses, states, strict=True):
            progress = member.progress
            progress.seconds += seconds
            progress.history.append({"updates": progress.updates, "loss": loss, "dev": score})
            writer.add_scalar(f"dev/{member.metric}", score, progress.updates)
            if (progress.updates or self.config.start_is_candidate) and self._compare(member, score, state):
                better.append(member)
            progress.finished = progress.updates >= self.config.train_iters or (
                progress.without_improvement >= self.config.early_stop
            )
        self._write_resume_files(states)
        for member in better:
            write_best(member)

    def _compare(self, member: Member, score: float, state: DeltaState) -> bool:
        """Whether the state is the best so far; a score that is not defined is better than none only."""
        progress = member.progress
        if progress.best is None:
            better = True
        elif self.as_original:
            better = not progress.best > score
        else:
            better = score > progress.best or (math.isnan(progress.best) and not math.isnan(score))
        if better:
            member.best = state
            progress.best, progress.best_updates, progress.without_improvement = score, progress.updates, 0
        elif progress.updates:
            progress.without_improvement += 1
        return better

    def _write_resume_files(self, states: list[DeltaState]) -> None:
        for k, (member, state) in enumerate(zip(self.members, states, strict=True)):
            saved = {
                "settings": member.settings,
                "delta": state,
                "best": member.best,
                "optimizer": _optimizer_slice(self.optimizer, k, self.delta.stacked),
                "progress": dataclasses.asdict(member.progress),
            }
            saved[identity.PROVENANCE] = {"seconds": saved["progress"].pop("seconds")}
            save_sealed(member.resume_file, saved)

    def retire(self) -> list[Member]:
        """Take the members that have finished or failed out of the stack; returns them."""
        going = [k for k, member in enumerate(self.members) if member.progress.finished or member.failed]
        staying = [k for k in range(len(self.members)) if k not in going]
        left = [self.members[k] for k in going]
        for k, member in zip(going, left, strict=True):
            self.writers[k].close()
            if not member.failed:
                log.info("%s: best dev %.4f after %d of %d updates", member.folder, member.progress.best,
                         member.progress.best_updates, member.progress.updates)  # fmt: skip
        if going and staying:
            index = torch.tensor(staying, device=self.backbone.device)
            self.delta.keep(index)
            _keep(self.optimizer, index)
        self.members, self.streams, self.writers = (
            [items[k] for k in staying] for items in (self.members, self.streams, self.writers)
        )
        return left


def outcomes(
    backbone: Backbone, delta: Delta, members: Sequence[Member], batch_size: int, max_length: int
) -> list[dict[str, float]]:
    """The metric and the log-likelihood (`log_likelihoods`) of each member on its test lines, as they are in the stack."""
    splits, metrics = [member.test for member in members], [member.metric for member in members]
    scores = evaluate(backbone, delta, splits, metrics, batch_size, max_length)
    likelihoods = log_likelihoods(backbone, delta, splits, batch_size)
    return [
        {"test": score, "log_likelihood": likelihood} for score, likelihood in zip(scores, likelihoods, strict=True)
    ]


def write_best(member: Member) -> None:
    """Write the best state of a member as its `checkpoint-best.pt`."""
    updates = member.progress.best_updates
    epoch = updates * member.batch_size // len(member.train.inputs)
    write_checkpoint(member.folder / BEST, member.args["tune_method"], member.best, member.args, updates, epoch)


_STATISTICS = ("exp_avg", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq")


def _optimizer_slice(optimizer: torch.optim.Optimizer, k: int, stacked: bool) -> list[dict[str, Tensor]]:
    """Member k's statistics, one dict per parameter; empty before the first update."""
    return [
        {
            name: (state[name][k] if stacked and not _shared(parameter, name) else state[name]).cpu().clone()
            for name in _STATISTICS
            if name in (state := optimizer.state.get(parameter, {}))
        }
        for parameter in optimizer.param_groups[0]["params"]
    ]


def _shared(parameter: nn.Parameter, name: str) -> bool:
    """Whether Adafactor's statistic has no leading axis: of vectors (K, d), whose columns it takes over K; there K = 1."""
    return name == "exp_avg_sq_col" and parameter.dim() == 2


def _load_optimizer(
    optimizer: torch.optim.Optimizer, slices: list[list[dict[str, Tensor]]], updates: int, stacked: bool
) -> None:
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        names = slices[0][number]
        state = {
            name: one if not stacked or _shared(parameter, name) else torch.stack([s[number][name] for s in slices])
            for name, one in names.items()
        }
        if state:
            moved = {name: value.to(parameter.device) for name, value in state.items()}
            optimizer.state[parameter] = {"step": updates, "RMS": 0, **moved}


def _keep(optimizer: torch.optim.Optimizer, members: Tensor) -> None:
    for state in optimizer.state.values():
        for name in _STATISTICS:
            if name in state:
                state[name] = state[name][members]


def read_resume(path: Path, settings: dict) -> dict | None:
    """The content of a resume file; None, with the reason in the log, where it is damaged or of other settings."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved = identity.unsealed(content)
        if saved is None:
            raise ValueError("checksum")
        if other := identity.difference(saved["settings"], settings):
            log.info("%s is not continued: %s", path, other)
            return None
        return {**saved, "progress": Progress(**saved["progress"], **saved[identity.PROVENANCE])}
    except Exception as error:  # a damaged file raises many kinds of errors in torch
        log.warning("%s is damaged, or of an earlier version (%s); the run starts again", path, type(error).__name__)
        return None
