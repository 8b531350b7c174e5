"""Weights by layer from the directions of LoRAs: an adaptation of Arrow (Ostapenko et al. 2024, "Towards modular LLMs by
building and reusing a library of LoRAs") to an init.

    v_j = the input direction that A_j B_j amplifies most: its first left singular vector, y = x A_j B_j, |v_j| = 1
    w_i = mean over tokens x of target i of softmax(|x . v_j| / temperature over the k largest, sources j != i)

for every linear layer with a LoRA. Arrow routes each token at inference, in a model whose lower layers are routed too; here
its coefficients are averaged over the target's few-shot training lines, which the frozen backbone alone reads, and weigh the
merge of each layer. LoRA only.
"""

import pewe_environment  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pewe.command import main

import torch
from torch import Tensor

from pewe.batches import collate
from pewe.cli import log_to
from pewe.data import Encoded
from pewe.errors import UserError
from pewe.flags import flag
from pewe.forward import T5, pack
from pewe.merging.few_shot import FewShot, FewShotConfig, Found, weigh_and_save
from pewe.merging.rules.matrices import lora_names
from pewe.progress import Bar
from pewe.setting import TASK_LIST
from pewe.state import DeltaState

delta = "lora"
arrow_k = 3
temperature = 1.0
source_ckpt_path = "checkpoints/lora/full_data"
save_ckpt_path = "checkpoints/lora/Arrow"


@dataclass(frozen=True)
class Config(FewShotConfig):
    """Flags; the constants above are their defaults."""

    delta: str = flag(delta, "lora")
    combine: str = flag("average", "each layer has weights of its own", choices=("average",))
    arrow_k: int = flag(arrow_k, "sources that a token is routed to", low=1)
    temperature: float = flag(temperature, "of the softmax over them, in the unit of a hidden state", above=0)
    source_ckpt_path: str = flag(source_ckpt_path, "folder with <source>/checkpoint-best.pt", decides=False)
    save_ckpt_path: str = flag(save_ckpt_path, "folder of the ensembles", decides=False)


def direction(A: Tensor, B: Tensor) -> Tensor:
    """The first left singular vector of A B, (d,) float64, from A (d, r) and B (r, h); its sign is not defined."""
    Q, R = torch.linalg.qr(A.double())
    return Q @ torch.linalg.svd(R @ B.double(), full_matrices=False)[0][:, 0]


def coefficients(x: Tensor, V: Tensor, allowed: Tensor, k: int, temperature: float) -> Tensor:
    """Sum over the tokens x (N, d) of the softmax of |x . v| over the k largest of the allowed directions V (d, n), (n,)."""
    scores = (x.double() @ V).abs().masked_fill(~allowed, -torch.inf)
    largest, places = scores.topk(min(k, int(allowed.sum())), dim=1)
    shares = torch.softmax(largest / temperature, dim=1)
    return V.new_zeros(V.shape[1]).index_add(0, places.flatten(), shares.flatten())


@torch.no_grad()
def routed(config: Config, few_shot: FewShot, V: dict[str, Tensor], lines: Encoded, allowed: Tensor) -> Tensor:
    """The mean coefficients of the sources over the tokens of these lines, (L, n), a row for each layer of V."""
    totals, tokens = dict.fromkeys(V, 0.0), dict.fromkeys(V, 0)

    def watch(name: str, x: Tensor) -> None:
        if name in V:
            totals[name] = totals[name] + coefficients(x, V[name], allowed, config.arrow_k, config.temperature)
            tokens[name] += len(x)

    rows = list(zip(lines.inputs, lines.labels(), strict=True))
    for start in range(0, len(rows), config.predict_batch_size):
        batch = collate(rows[start : start + config.predict_batch_size], few_shot.backbone.pad)
        T5(few_shot.delta, watch=watch).states(pack(few_shot.backbone.model, batch, 1))
    return torch.stack([totals[name] / tokens[name] for name in V]).cpu()


def directions(states: Sequence[DeltaState]) -> dict[str, Tensor]:
    """The directions of all sources in each layer with a LoRA, name -> (d, n)."""
    names = lora_names(states[0])
    of = {name: [direction(state[f"{name}.lora_A"], state[f"{name}.lora_B"]) for state in states] for name in names}
    return {name: torch.stack(own, dim=1) for name, own in of.items()}


def weigh(config: Config, few_shot: FewShot, allowed: Tensor) -> Found:
    """The weights of every target in every layer, (T, L, n)."""
    device, states = few_shot.backbone.device, list(few_shot.states)
    V = {name: own.to(device) for name, own in directions(states).items()}
    few_shot.delta.load([{name: torch.zeros_like(tensor) for name, tensor in states[0].items()}])  # the backbone alone
    parts = []
    with Bar(total=len(few_shot.tasks), unit="target", disable=config.quiet) as bar:
        for task, own in zip(few_shot.tasks, allowed, strict=True):
            parts.append(routed(config, few_shot, V, few_shot.split(task, "train"), own.to(device)))
            bar.update()
    return Found(torch.stack(parts), list(V))


def run(config: Config) -> None:
    """Weights, checkpoints and heat map."""
    log_to(None, config.quiet)
    if config.delta != "lora":
        raise UserError(f"--delta {config.delta}: Arrow reads the products of LoRAs, expected lora")
    weigh_and_save(config, TASK_LIST, "weights of Arrow, an adaptation", partial(weigh, config))


if __name__ == "__main__":
    main(run, Config, __doc__)
