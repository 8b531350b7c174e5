"""How near tuning, scoring, validation and merging come to what the machine can do, and where the rest of the time goes.

    python -m benchmarks.roofline                                      three sizes of T5, random weights, fp32 and, if fast, bf16
    OMP_NUM_THREADS=1 python -m benchmarks.roofline --clock cpu        on a machine that others use too: CPU time of one thread

In every turn the peak is measured first: matrix products (FLOP/s) or copies (bytes/s) on the same device and dtype. The FLOP are
those of real tokens, from the shapes: padding, gathers and functions of elements count as nothing. `share` is the median over
the turns. `parts` is the time by kind of operation, in percent of one profiled call.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks import measure
from pewe.backbone import DTYPES, own_head
from pewe.batches import Row, collate, collate_stack
from pewe.cli import main
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.dropout import OwnStreams
from pewe.flags import flag
from pewe.hardware import GAIN, bfloat16_gain
from pewe.losses import losses, member_losses
from pewe.merging.average import merge
from pewe.tuning.evaluate import greedy
from pewe.tuning.optimizers import clip_gradients, make_optimizer

SIZES = {  # d_model, d_kv, d_ff, heads, encoder and decoder layers, vocabulary
    "mini_t5": (128, 32, 256, 4, 4, 3, 1300),
    "flan_t5_small": (512, 64, 1024, 6, 8, 8, 32128),
    "t5_base": (768, 64, 2048, 12, 12, 12, 32128),
}
KINDS = {  # of operations, by the beginnings of their names in torch's profiler
    "products": ("aten::mm", "aten::addmm"),
    "attention's products": ("aten::bmm", "aten::baddbmm"),
    "gathers and copies": ("aten::index_select", "aten::copy_", "aten::fill_", "aten::cat", "aten::clone"),
    "softmax": ("aten::_softmax", "aten::logsumexp", "aten::exp", "aten::amax"),
    "element by element": (
        "aten::mul",
        "aten::add",
        "aten::gelu",
        "aten::silu",
        "aten::sub",
        "aten::where",
        "aten::div",
    ),
}


@dataclass(frozen=True)
class Config:
    """Sizes and lines."""

    sizes: list[str] = flag(list(SIZES), "sizes of the backbone", choices=SIZES)
    device: str = flag("cpu", "cpu or cuda")
    dtypes: list[str] = flag(
        [], "dtypes (default: float32, and bfloat16 where its products are faster)", choices=DTYPES
    )
    stack: int = flag(6, "members", low=1)
    rows: int = flag(8, "lines of a member")
    longest: int = flag(96, "tokens of an input at most")
    answer: int = flag(6, "tokens of an answer at most")
    equal: bool = flag(False, "all inputs and answers as long as allowed")
    square: int = flag(0, "rows of the square matrices whose product is the peak (default: 1536, on a GPU 8192)", low=0)
    clock: str = measure.clock_flag()
    repeats: int = flag(5, "turns")
    name: str = flag("roofline", "name of the result file")


def shape_of(size: str) -> T5Config:
    """The configuration of a backbone of this size."""
    d, d_kv, f, heads, encoder, decoder, vocabulary = SIZES[size]
    shape = T5Config(
        vocab_size=vocabulary,
        d_model=d,
        d_kv=d_kv,
        d_ff=f,
        num_heads=heads,
        num_layers=encoder,
        num_decoder_layers=decoder,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    shape._attn_implementation = "eager"
    return shape


def random_rows(config: Config, vocabulary: int) -> list[list[Row]]:
    """The lines of every member: lengths log-normal about a third of the longest, or all the longest."""
    generator = torch.Generator().manual_seed(0)

    def ids(longest: int) -> tuple[int, ...]:
        length = longest / 3 * float(torch.randn((), generator=generator).mul(0.6).exp())
        count = longest if config.equal else max(2, min(longest, round(length)))
        return tuple(torch.randint(2, vocabulary, (count,), generator=generator).tolist())

    return [[(ids(config.longest), ids(config.answer)) for _ in range(config.rows)] for _ in range(config.stack)]


@dataclass(frozen=True)
class Flops:
    """FLOP of one forward on real tokens, by what the way back needs of them: as many again, twice, or nothing."""

    frozen: float  # products with weights of the backbone; back to the activations once more
    first: float  # those before the first delta, to which nothing goes back
    twice: float  # attention's, and the delta's

    @property
    def forward(self) -> float:
        return self.frozen + self.first + self.twice

    @property
    def update(self) -> float:
        """Forward and backward."""
        return 2 * self.frozen + self.first + 3 * self.twice


def flops(shape: T5Config, lines: Sequence[Row], adapter: int) -> Flops:
    """Of these lines through a T5 with adapters of this size; 2 for a multiplication and its addition."""
    d, h, f, V = shape.d_model, shape.num_heads * shape.d_kv, shape.d_ff, shape.vocab_size
    N, M = (sum(len(row[side]) for row in lines) for side in (0, 1))
    attention, ff, encoder, decoder = 4 * d * h, 3 * d * f, shape.num_layers, shape.num_decoder_layers
    first = 3 * d * h * (N + M)  # q, k and v of the first layers
    weights = N * (encoder * (attention + ff) + decoder * 2 * d * h) + M * (decoder * (1.5 * attention + ff) + V * d)
    pairs = sum(encoder * len(x) ** 2 + decoder * (len(y) ** 2 + len(x) * len(y)) for x, y in lines)
    delta = 2 * d * adapter * (2 * encoder * N + 3 * decoder * M)
    return Flops(2.0 * (weights - first), 2.0 * first, 2.0 * (2 * h * pairs + delta))


def works(config: Config, size: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object], float]]:
    """(what, one call of it, its FLOP): an update, scoring, a validation."""
    torch.manual_seed(0)
    shape, device = shape_of(size), torch.device(config.device)
    model = own_head(T5ForConditionalGeneration(shape))
    model.lm_head.weight.data.mul_(0.05)  # logits of a sane size
    model = model.to(device, dtype)
    own = DeltaConfig(adapter_size=12)
    delta = attach_delta(model, own, config.stack)
    delta.initialise([str(k) for k in range(config.stack)])
    members = random_rows(config, shape.vocab_size)
    lines = [row for member in members for row in member]
    needed, optimizer = flops(shape, lines, own.adapter_size), make_optimizer(delta, [1e-4] * config.stack)

    def update() -> None:
        model.train()
        dropout = OwnStreams(shape.dropout_rate, [f"0/{k}/0" for k in range(config.stack)], device)
        member_losses(delta, collate_stack(members, 0), dropout).sum().backward()
        clip_gradients(delta, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield "tuning", update, needed.update
    same = members[0] * config.stack  # every source reads the same lines

    @torch.no_grad()
    def score() -> None:
        model.eval()
        losses(delta, collate(same, 0))

    yield "scoring", score, flops(shape, same, own.adapter_size).forward
    ends, steps = shape.eos_token_id, config.answer
    answered = [(x, tuple(range(steps))) for x, _ in lines]  # as many tokens for every line

    def validate() -> None:
        model.eval().config.eos_token_id = -1
        greedy(delta, [[x for x, _ in member] for member in members], steps + 1)
        model.config.eos_token_id = ends

    yield "validation", validate, flops(shape, answered, own.adapter_size).forward


def merging(size: str) -> tuple[Callable[[], object], float]:
    """Leave-one-out averages of 16 adapters of this size, and the bytes that are read and written at least."""
    with torch.device("meta"):
        delta = attach_delta(T5ForConditionalGeneration(shape_of(size)), DeltaConfig(adapter_size=12), 1)
    states = [{name: torch.randn(p.shape[1:]) for name, p in delta.named.items()} for _ in range(16)]
    weights = (1 - torch.eye(16)) / 15
    return lambda: list(merge(states, weights)), 2 * 4.0 * sum(t.numel() for state in states for t in state.values())


def peaks_of(config: Config) -> dict[str, Callable[[], float]]:
    """What the machine reaches, measured when it is asked: FLOP/s of products by dtype, bytes/s read and written of copies."""
    device = torch.device(config.device)
    square = config.square or (8192 if config.device == "cuda" else 1536)
    a, b = torch.zeros(2, min(2**25, 16 * square**2))

    def products(dtype: torch.dtype) -> float:
        matrix = torch.ones(square, square, dtype=dtype, device=device)
        return 2 * square**3 / min(measure.seconds(lambda: matrix @ matrix, config.clock) for _ in range(5))

    found = {name: partial(products, dtype) for name, dtype in DTYPES.items()}
    return {
        **found,
        "copies": lambda: 8 * a.numel() / min(measure.seconds(lambda: b.copy_(a), config.clock) for _ in range(5)),
    }


def parts_of(way: Callable[[], object], device: str) -> dict[str, int]:
    """Percent of one call's time by kind of operation; the rest is other operations, Python, and dropout's numbers."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    start = time.perf_counter()
    with profile(activities=activities) as seen:
        measure.seconds(way)
    whole = 1e6 * (time.perf_counter() - start)
    spent = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = {
        kind: sum(getattr(one, spent) for one in seen.key_averages() if one.key.startswith(names))
        for kind, names in KINDS.items()
    }
    return {kind: round(100 * value / whole) for kind, value in found.items()}


def row(
    config: Config, case: str, way: Callable[[], object], needed: float, peak: Callable[[], float], unit: str
) -> dict:
    """One line of the result: the share of the peak in every turn, and where the time goes."""
    way()
    times, shares, peaks = [], [], []
    for _ in range(config.repeats):
        peaks.append(peak())
        times.append(measure.seconds(way, config.clock))
        shares.append(needed / times[-1] / peaks[-1])
    line = {
        "case": case,
        "ours_s": round(statistics.median(times), 4),
        "turns": config.repeats,
        "share": round(statistics.median(shares), 2),
        "needed": f"{needed / 1e9:.3g} G{unit}",
        "peak": f"{statistics.median(peaks) / 1e9:.0f} G{unit}/s",
        "clock": config.clock,
        "parts": parts_of(way, config.device),
    }
    print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    return line


def rows(config: Config) -> Iterator[dict]:
    """All sizes, dtypes and kinds of work."""
    peaks, fast = peaks_of(config), bfloat16_gain(config.device) >= GAIN
    for size in config.sizes:
        for dtype in config.dtypes or ["float32", *["bfloat16"] * fast]:
            for what, way, needed in works(config, size, DTYPES[dtype]):
                yield row(config, f"{what}, {size}, {dtype}", way, needed, peaks[dtype], "FLOP")
        yield row(config, f"merging, {size}", *merging(size), peaks["copies"], "B")


def bench(config: Config) -> None:
    """Write the result."""
    measure.write(config.name, config, list(rows(config)))


if __name__ == "__main__":
    main(bench, Config, __doc__)
