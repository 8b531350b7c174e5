"""Weights by gradient: those that make the few-shot loss of the merged delta smallest (learned soup of Wortsman et al. 2022).

    w_i = softmax over sources j != i of alpha_ij,    alpha by Adam on L_i(sum_j w_ij theta_j), started at 0: the average

L_i is the mean token loss of batches of the target's few-shot training lines. With `--by_layer` every layer of the delta has
weights of its own (of a prefix, which has one network for each side of the model, each side). Only the weights are learned.
"""

import pewe_environment  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import collate_stack, training_updates
from pewe.cli import log_to
from pewe.errors import UserError
from pewe.flags import flag
from pewe.losses import member_losses
from pewe.merging.few_shot import FewShot, FewShotConfig, Found, layers_of, weigh_and_save
from pewe.meter import count
from pewe.progress import Bar
from pewe.setting import TASK_LIST

delta = "adapter"
updates = 50
learning_rate = 0.1
batch_size = 16
by_layer = False
source_ckpt_path = "checkpoints/adapter/full_data"
save_ckpt_path = "checkpoints/adapter/gradient"


@dataclass(frozen=True)
class Config(FewShotConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "adapter, lora or prefix")
    updates: int = flag(updates, "updates of Adam", low=1)
    learning_rate: float = flag(learning_rate, "of Adam, on the logarithms of the weights", above=0)
    batch_size: int = flag(batch_size, "few-shot training lines of an update", low=1)
    by_layer: bool = flag(by_layer, "weights of its own for every layer")
    source_ckpt_path: str = flag(
        source_ckpt_path, "folder with <source>/checkpoint-best.pt, or a list of sources", decides=False
    )
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)

    def forwards(self, lines: int, sources: int) -> float:
        """Forward and back for every line of every update."""
        return 2 * self.updates * self.batch_size


class Mixed:
    """The sources as stacked tensors (n, ...), and what the merged stack is and says of its weights (K, L, n)."""

    def __init__(self, few_shot: FewShot, layers: Sequence[Sequence[str]]):
        states, device = list(few_shot.states), few_shot.backbone.device
        self.delta, self.layers = few_shot.delta, layers
        self.sources = {name: torch.stack([s[name] for s in states]).to(device).flatten(1) for name in states[0]}
        self.shapes = {name: tensor.shape for name, tensor in states[0].items()}
        self.delta.load([states[0]])

    def load(self, W: Tensor) -> None:
        """theta_k = sum_j w_kj^l theta_j in layer l, as the members of the stack."""
        for number, names in enumerate(self.layers):
            for name in names:
                value = (W[:, number] @ self.sources[name]).view(len(W), *self.shapes[name])
                self.delta.named[name].data = value
                self.delta.named[name].grad = None

    def gradient(self) -> Tensor:
        """d loss_k / d w_kj^l = sum of d loss_k / d theta_k times theta_j over layer l, (K, L, n)."""
        grads = {name: parameter.grad.flatten(1) for name, parameter in self.delta.named.items()}
        of = [sum(grads[name] @ self.sources[name].mT for name in names) for names in self.layers]
        return torch.stack(of, dim=1)


def learn(config: Config, few_shot: FewShot, mixed: Mixed, allowed: Tensor, tasks: Sequence[str], bar: Bar) -> Tensor:
    """Weights of these targets (K, L, n), learned in one stack; `allowed` (K, n)."""
    allowed = allowed.to(few_shot.backbone.device)
    alpha = torch.zeros(len(tasks), len(mixed.layers), allowed.shape[1], device=allowed.device, requires_grad=True)
    streams = [
        training_updates(few_shot.split(task, "train"), f"{config.seed}/{task}", config.batch_size, 1, False)
        for task in tasks
    ]
    optimizer = torch.optim.Adam([alpha], lr=config.learning_rate)
    for windows in islice(zip(*streams, strict=True), config.updates):
        W = torch.softmax(alpha.masked_fill(~allowed[:, None], -torch.inf), dim=2)
        mixed.load(W.detach())
        batch = collate_stack([window[0] for window in windows], few_shot.backbone.pad)
        member_losses(few_shot.delta, batch).sum().backward()
        optimizer.zero_grad()
        W.backward(mixed.gradient())
        optimizer.step()
        count(updates=len(tasks))
        bar.update(len(tasks))
    return torch.softmax(alpha.detach().masked_fill(~allowed[:, None], -torch.inf), dim=2).double().cpu()


def weigh(config: Config, few_shot: FewShot, allowed: Tensor) -> Found:
    """The weights of every target, (T, n), or (T, L, n) by layer; `--stack` targets at a time."""
    layers = layers_of(few_shot.states[0])
    mixed = Mixed(few_shot, list(layers.values()) if config.by_layer else [list(few_shot.states[0])])
    tasks, parts = few_shot.tasks, []
    with Bar(total=len(tasks) * config.updates, unit="update", disable=config.quiet) as bar:
        for start in range(0, len(tasks), config.stack):
            own = slice(start, start + config.stack)
            parts.append(learn(config, few_shot, mixed, allowed[own], tasks[own], bar))
    W = torch.cat(parts)
    return Found(W, list(layers)) if config.by_layer else Found(W[:, 0])


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    if config.by_layer and config.combine != "average":
        raise UserError(f"--combine {config.combine}: weights by layer are for the weighted average alone")
    weigh_and_save(config, TASK_LIST, "weights by gradient", partial(weigh, config))


if __name__ == "__main__":
    main(run, Config, __doc__)
