"""Cosine of hidden states by block: how alike source j and a delta tuned on the target process the target's dev data
(Lv et al. 2023, section 5).

    S[i, j, b] = sum over dev examples of cos(H_b(theta_i), H_b(theta_j))      higher is more similar

H_b is the output of block b, before the final layer norm, over the tokens that are not padding, flattened
(`cos_withoutpad`); theta_i is tuned from random init (`--random_tuned_ckpt_path`); the first dev batch of target i.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pewe.cli import flag, main
from pewe.data import IGNORED, Batch
from pewe.similarity import Measure, SimilarityConfig, Sources, decoder_states, run

mode = "cos_withoutpad"


@dataclass
class BlockConfig(SimilarityConfig):
    """Similarity by hidden states."""

    mode: str = flag(mode, "cos_withoutpad, the only mode of the paper", choices=(mode,))
    output_dir: str = flag("checkpoints/adapter/similarity/block", "folder of result.tsv", decides=False)


def block_outputs(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """The output of every block, name -> (members * N, tokens, d)."""
    outputs: dict[str, Tensor] = {}
    hooks = []
    for stack in ("encoder", "decoder"):
        for number, block in enumerate(getattr(sources.model, stack).block):

            def keep(module: nn.Module, args, output, name=f"{stack}.block.{number}") -> None:
                outputs[name] = output[0]

            hooks.append(block.register_forward_hook(keep))
    try:
        decoder_states(sources.model, batch.repeat(sources.stack))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


@torch.no_grad()
def score(sources: Sources, batch: Batch) -> dict[str, Tensor]:
    """Summed cosines of each block and each of the K sources, (K,), without unit."""
    values: dict[str, Tensor] = {}
    for piece in sources.pieces(batch):
        masks = {"encoder": piece.attention_mask.bool(), "decoder": piece.labels != IGNORED}
        for name, states in block_outputs(sources, piece).items():
            mask = masks[name.split(".")[0]]
            rows = states.float().view(sources.stack, *mask.shape, -1).masked_fill(~mask[..., None], 0.0).flatten(2)
            cosines = nn.functional.cosine_similarity(rows[:1], rows[1:], dim=2, eps=1e-12)
            values[name] = values.get(name, 0) + cosines.sum(1)
    return values


def run_mode(config: BlockConfig):
    """Run the measure in the mode of the flags."""
    return run(Measure("block", score, higher_is_more_similar=True, needs_target=True), config)


if __name__ == "__main__":
    main(run_mode, BlockConfig, __doc__)
