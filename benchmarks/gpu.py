"""A T5 of full size with random weights, bf16, on a GPU: the Loss matrix and stacked tuning, each beside its roofline, then
the roofline of benchmarks.roofline for updates, scoring and validation.

    python -m benchmarks.gpu                                          T5-base, 32 sources x 32 targets, 50 dev lines each
    python -m benchmarks.gpu --device cpu --dtype float32 --layers 2 --width 64 --tasks_count 3 --lines 10 ...   a try-out

The roofline of the first two: a matrix product of the same dtype, measured here, gives the peak; the share is (multiply-adds
that the tokens need without padding) x 2 / seconds / peak. Attention scores are left out of the numerator.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks import measure, plain, roofline
from benchmarks.roofline import SIZES
from get_similarity import get_Loss
from pewe.backbone import DTYPES, Backbone, own_head
from pewe.batches import scoring_batches
from pewe.cli import main
from pewe.data import Encoded, Example
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.flags import flag
from pewe.similarity.config import SimilarityConfig
from pewe.similarity.loop import score_target
from pewe.similarity.scoring import Sources
from pewe.tuning.choices import ORIGINAL
from pewe.tuning.config import TrainConfig
from pewe.tuning.member import Member
from pewe.tuning.session import Session


@dataclass(frozen=True)
class Config:
    """Sizes; the defaults are T5 v1.1 base and the paper's 32 tasks."""

    device: str = flag("cuda", "cuda or cpu")
    dtype: str = flag("bfloat16", "dtype of the backbone")
    layers: int = flag(12, "encoder and decoder layers each")
    width: int = flag(768, "d_model")
    feed_forward: int = flag(2048, "d_ff")
    vocabulary: int = flag(32128, "entries")
    tasks_count: int = flag(32, "sources and targets")
    lines: int = flag(50, "dev lines of a target")
    updates: int = flag(20, "updates of each tuning run")
    roofline: list[str] = flag(["flan_t5_small", "t5_base"], "sizes of which the roofline is measured", choices=SIZES)
    square: int = flag(0, "rows of the square matrices whose product is the peak (default: 8192, on a CPU 1024)", low=0)
    repeats: int = flag(3, "turns")
    name: str = flag("gpu", "name of the result file")


def backbone(config: Config) -> Backbone:
    """A random T5 v1.1; no tokenizer is needed."""
    torch.manual_seed(0)
    shape = T5Config(
        vocab_size=config.vocabulary,
        d_model=config.width,
        d_kv=64,
        d_ff=config.feed_forward,
        num_heads=config.width // 64,
        num_layers=config.layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    device = torch.device(config.device)
    model = own_head(T5ForConditionalGeneration(shape)).to(device, DTYPES[config.dtype])
    return Backbone(model.eval(), None, device)


def random_task(name: str, lines: int, seed: int, vocabulary: int) -> Encoded:
    """Inputs of log-normal length (median 90 tokens, at most 512), labels of 3 to 8 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randn(lines, generator=generator).mul(0.7).add(4.5).exp().clamp(8, 512).long()
    label_lengths = torch.randint(3, 9, (lines,), generator=generator)

    def ids(length) -> tuple[int, ...]:
        return tuple(torch.randint(2, vocabulary, (int(length),), generator=generator).tolist())

    examples = tuple(Example(f"line {number}", ("",)) for number in range(lines))
    return Encoded(name, examples, tuple(map(ids, lengths)), tuple((ids(n),) for n in label_lengths))


def matmul_peak(config: Config) -> float:
    """FLOP/s of a large square product in the dtype of the backbone, the best of ten."""
    size = config.square or (8192 if config.device == "cuda" else 1024)
    a = torch.randn(size, size, device=config.device, dtype=DTYPES[config.dtype])
    return 2 * size**3 / min(measure.seconds(lambda: a @ a) for _ in range(10))


def needed_flops(model, tasks: list[Encoded], stack: int) -> float:
    """Forward FLOP of `stack` deltas on these lines: 2 per weight and token that passes it."""

    def weights(module) -> int:
        return sum(
            p.numel()
            for name, p in module.named_parameters()
            if p.dim() == 2 and not any(other in name for other in ("embed", "bias", "delta"))
        )

    cross = sum(
        p.numel()
        for name, p in model.decoder.named_parameters()
        if "EncDecAttention.k" in name or "EncDecAttention.v" in name
    )
    inputs = sum(len(ids) for task in tasks for ids in task.inputs)
    labels = sum(len(ids[0]) for task in tasks for ids in task.outputs)
    per_input, per_label = weights(model.encoder) + cross, weights(model.decoder) - cross + model.lm_head.weight.numel()
    return 2.0 * stack * (inputs * per_input + labels * per_label)


def peak_memory(config: Config) -> dict:
    """Peak memory of the device since the last call, in GiB."""
    if config.device != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"peak_GiB": round(peak, 1)}


def loss_matrix(config: Config) -> dict:
    """Every source on every target, stacked, against one source at a time on two targets (scaled up)."""
    base = backbone(config)
    delta = attach_delta(base.model, DeltaConfig(), config.tasks_count)
    delta.initialise([str(number) for number in range(config.tasks_count)])
    states = delta.states()
    tasks = [random_task(f"task {n}", config.lines, n, config.vocabulary) for n in range(config.tasks_count)]
    sources = Sources(base, delta, SimilarityConfig(predict_batch_size=config.lines))

    def stacked() -> None:
        sources.load(states)
        for task in tasks:
            score_target(get_Loss.MEASURE, sources, task)

    def one_by_one() -> None:
        for task in tasks[:2]:
            batch = next(scoring_batches(task, config.lines, 0)).to(base.device)
            for state in states:
                delta.load([state])
                plain.loss(base.model, delta, [batch], [])

    stacked()
    times = measure.in_turns({"two_targets": one_by_one, "ours": stacked}, config.repeats)
    times["plain"] = [t * len(tasks) / 2 for t in times.pop("two_targets")]
    share = needed_flops(base.model, tasks, config.tasks_count) / min(times["ours"]) / matmul_peak(config)
    case = f"Loss matrix {config.tasks_count} x {config.tasks_count}"
    multiplied = f"from 2 of {len(tasks)} targets"
    share = round(share, 3)
    return measure.row(case, times, plain_multiplied=multiplied, share_of_matmul_peak=share, **peak_memory(config))


def tuning(config: Config) -> dict:
    """Updates of all targets at batch 8: one stack against one by one, without validation."""
    base = backbone(config)
    delta = attach_delta(base.model, DeltaConfig(), config.tasks_count)
    delta.initialise([str(number) for number in range(config.tasks_count)])
    inits = delta.states()
    tasks = [random_task(f"task {n}", 64, n, config.vocabulary) for n in range(config.tasks_count)]
    settings = TrainConfig(start_is_candidate=False, log_interval=10**9)

    def train(numbers: range, folder: str) -> None:
        members = [
            Member(tasks[n].task, "ACC", tasks[n], tasks[n], 8, 5e-4, Path(folder) / str(n), inits[n], {}, {})
            for n in numbers
        ]
        session = Session(base, delta, members, settings, 1, 8, 8, ORIGINAL)
        session.start()
        session.train(config.updates, tqdm(disable=True))
        for writer in session.writers:
            writer.close()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(range(config.tasks_count), folder)

    def alone() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(config.tasks_count):
                train(range(number, number + 1), folder)

    peak_memory(config)
    ours()
    memory = peak_memory(config)
    times = measure.in_turns({"plain": alone, "ours": ours}, config.repeats)
    forward = needed_flops(base.model, tasks, 1) / 64 * 8 * config.updates
    share = 2 * forward / min(times["ours"]) / matmul_peak(config)  # forward, and backward to the activations only
    case = f"tuning of {config.tasks_count} targets, {config.updates} updates at batch 8"
    return measure.row(case, times, share_of_matmul_peak=round(share, 3), **memory)


def bench(config: Config) -> None:
    """The matrix, the tuning, and the roofline of benchmarks.roofline."""
    rows = [loss_matrix(config), tuning(config)]
    own = {"device": config.device, "dtypes": [config.dtype], "repeats": config.repeats, "square": config.square}
    rows += roofline.rows(roofline.Config(sizes=config.roofline, stack=config.tasks_count, **own))
    measure.write(config.name, config, rows)


if __name__ == "__main__":
    main(bench, Config, __doc__)
