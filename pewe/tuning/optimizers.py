"""Adafactor and AdamW for a stack: a learning rate, a clip and statistics of its own for every member."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Adafactor

from pewe.deltas.tunable import Tunable
from pewe.tuning.config import TrainConfig


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


def make_optimizer(delta: Tunable, learning_rates: Sequence[float], name: str = "adafactor") -> torch.optim.Optimizer:
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
def clip_gradients(delta: Tunable, max_norm: float) -> Tensor:
    """Scale each member's gradient to a norm of at most `max_norm` over all its tensors; the norms before, (K,)."""
    gradients = [p.grad for p in delta.named.values() if p.grad is not None]
    norms = torch.stack([gradient.reshape(delta.stack, -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)) if delta.stacked else scale)
    return norms


_STATISTICS = ("exp_avg", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq")


def statistics_of(optimizer: torch.optim.Optimizer, k: int, stacked: bool) -> list[dict[str, Tensor]]:
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


def load_statistics(
    optimizer: torch.optim.Optimizer, slices: list[list[dict[str, Tensor]]], updates: int, stacked: bool
) -> None:
    """Give the optimiser the statistics of its members, as `statistics_of` gave them after so many updates."""
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        names = slices[0][number]
        state = {
            name: one if not stacked or _shared(parameter, name) else torch.stack([s[number][name] for s in slices])
            for name, one in names.items()
        }
        if state:
            moved = {name: value.to(parameter.device) for name, value in state.items()}
            optimizer.state[parameter] = {"step": updates, "RMS": 0, **moved}


def keep_members(optimizer: torch.optim.Optimizer, members: Tensor) -> None:
    """Drop the statistics of all members but these (indices into the stack)."""
    for state in optimizer.state.values():
        for name in _STATISTICS:
            if name in state:
                state[name] = state[name][members]
