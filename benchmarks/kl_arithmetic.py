"""The arithmetic of KL-divergence alone: logits of the target and of K sources, (K, tokens, V), to K numbers.

    python -m benchmarks.kl_arithmetic

The plain way is the token loop of benchmarks/plain.py. `exp`, the exponential of every logit alone, token by token into one
small buffer, is the least that the formula asks for; `log_softmax`, torch's kernel alone, what anything written with torch takes.
"""

from dataclasses import dataclass

import torch

from benchmarks import measure, plain
from get_similarity.get_KL_divergence import divergence
from pewe.cli import main
from pewe.flags import flag
from pewe.similarity.scoring import sum_over_tokens


@dataclass(frozen=True)
class Config:
    """Sizes."""

    vocabulary: int = flag(32128, "entries V (T5's)")
    sources: int = flag(32, "sources K")
    tokens: int = flag(32, "label tokens of a target's batch")
    clock: str = measure.clock_flag()
    repeats: int = flag(5, "turns")
    name: str = flag("kl_arithmetic", "name of the result file")


def bench(config: Config) -> None:
    """Both ways in turns on the same random logits."""
    generator = torch.Generator().manual_seed(0)
    # in memory as the head of the model leaves them: the members of one token side by side
    logits = (
        torch.randn(config.tokens, 1 + config.sources, config.vocabulary, generator=generator).mul(3).transpose(0, 1)
    )
    labels, values = torch.zeros(config.tokens, dtype=torch.long), {}

    def plain_way() -> None:
        target, tokens = logits[0][None], [(0, j) for j in range(config.tokens)]
        values["plain"] = torch.tensor([plain.kl_token_loop(target, source[None], tokens) for source in logits[1:]])

    def our_way() -> None:
        values["ours"] = sum_over_tokens(divergence, logits, labels, lambda part: part, config.vocabulary)

    by_token = logits.transpose(0, 1)
    room = torch.empty_like(by_token[0])

    def exponentials() -> None:
        for part in by_token:
            torch.exp(part, out=room)

    def log_softmax() -> None:
        for part in by_token:
            torch.log_softmax(part, 1)

    ways = {"plain": plain_way, "ours": our_way, "exp": exponentials, "log_softmax": log_softmax}
    our_way()
    times = measure.in_turns(ways, config.repeats, config.clock)
    error = ((values["plain"] - values["ours"]).abs() / values["plain"]).max().item()
    bounds = {"bound": measure.median_ratio(times, ours="exp")}
    bounds["bound_of_log_softmax"] = measure.median_ratio(times, ours="log_softmax")
    rows = [measure.row("KL arithmetic", times, **bounds, largest_relative_difference=float(f"{error:.1e}"))]
    measure.write(config.name, config, rows)


if __name__ == "__main__":
    main(bench, Config, __doc__)
