"""What computing on padding costs: transformers' own forward with opendelta's sites on the padded rectangle (`plain`) against
ours on real tokens only (`ours`), the same rows in turns: updates with dropout, scoring, and greedy generation.

    python -m benchmarks.packing                                     Flan-T5-small's size, random weights, random lines
    python -m benchmarks.packing --model FOLDER --task_dir FOLDER --tasks a b c --full_train        lines of real tasks
    python -m benchmarks.packing --model FOLDER --task_dir FOLDER --groups                          four kinds of real tasks

Random lines are of unlike length (log-normal, cut) and of equal length; where lengths are equal nothing can be gained, and
nothing should be lost.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from benchmarks import measure
from benchmarks.plain import greedy_settings
from pewe.backbone import BackboneConfig, load_backbone, own_head
from pewe.batches import IGNORED, Batch, Row, collate_stack
from pewe.cli import main
from pewe.data import DataConfig, find_prefixes, load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.base import Delta
from pewe.deltas.config import DeltaConfig
from pewe.dropout import OwnStreams
from pewe.flags import flag
from pewe.losses import member_losses
from pewe.tuning.evaluate import greedy
from pewe.tuning.optimizers import clip_gradients, make_optimizer


@dataclass(frozen=True)
class Config(BackboneConfig, DataConfig, DeltaConfig):
    """Sizes of the stack; the flags of the backbone and the data count where --tasks are given."""

    device: str = flag("cpu", "cpu or cuda")
    max_input_length: int = flag(96, "tokens of an input at most, and of every line of equal length")
    max_output_length: int = flag(10, "tokens of an answer at most")
    stack: int = flag(6, "members")
    rows: int = flag(8, "lines of a member in an update")
    groups: bool = flag(False, "the tasks of GROUPS, a row of the result for each, and lines of equal length")
    methods: list[str] = flag(["adapter", "lora", "prefix"], "delta methods")
    repeats: int = flag(5, "turns")
    clock: str = measure.clock_flag()
    name: str = flag("packing", "name of the result file")


GROUPS = {
    "short classification": ["tweet_eval-irony", "tweet_eval-offensive", "financial_phrasebank"],
    "fill-in": ["lama-conceptnet", "lama-google_re", "numer_sense"],
    "multiple choice": ["commonsense_qa", "openbookqa", "qasc"],
    "passages": ["boolq", "race-middle", "quail"],
}

Lines = Callable[[random.Random], list[list[Row]]]  # the rows of every member


def random_lines(config: Config, equal: bool, vocabulary: int = 32100) -> Lines:
    """Lines of random tokens of a vocabulary of this size, lengths log-normal about a third of the longest, or all the longest."""

    def line(rng: random.Random) -> Row:
        lengths = config.max_input_length, config.max_output_length
        if not equal:
            lengths = [max(2, min(longest, round(longest / 3 * rng.lognormvariate(0, 0.6)))) for longest in lengths]
        return tuple(tuple(rng.choices(range(2, vocabulary), k=length)) for length in lengths)

    return lambda rng: [[line(rng) for _ in range(config.rows)] for _ in range(config.stack)]


def task_lines(config: Config, tokenizer, tasks: Sequence[str]) -> Lines:
    """Lines of the training files of these tasks, one task a member in turn."""
    splits = [
        load_split(tokenizer, config, task, find_prefixes(Path(config.task_dir), task)[0], "train") for task in tasks
    ]

    def draw(rng: random.Random) -> list[list[Row]]:
        chosen = [splits[k % len(splits)] for k in range(config.stack)]
        return [
            [(split.inputs[i], split.outputs[i][0]) for i in rng.choices(range(len(split.inputs)), k=config.rows)]
            for split in chosen
        ]

    return draw


def new_model(config: Config) -> T5ForConditionalGeneration:
    """The backbone of the flags, or random weights of Flan-T5-small's size."""
    if config.tasks or config.groups:
        return load_backbone(config).model
    torch.manual_seed(0)
    shape = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    shape._attn_implementation = "eager"
    model = own_head(T5ForConditionalGeneration(shape))
    model.lm_head.weight.data.mul_(0.05)  # logits of a sane size: exp of far lower ones is slow
    return model.to(config.device)


def stock_losses(delta: Delta, batch: Batch) -> Tensor:
    """`member_losses` by transformers' forward on the padded rectangle."""
    model, counted = delta.backbone_model, batch.labels != IGNORED
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_attention_mask=counted.long(),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(batch.labels),
        use_cache=False,
    ).logits
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(delta.stack, -1).sum(1) / counted.view(delta.stack, -1).sum(1).clamp(min=1)


def stock_greedy(delta: Delta, batch: Batch, settings: GenerationConfig) -> Tensor:
    """Greedy ids of transformers' generation."""
    return delta.backbone_model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings
    )


def compare(config: Config, method: str, what: str, lines: Lines) -> list[dict]:
    """Update, scoring and generation both ways on the same rows, turn by turn."""
    model = new_model(config)
    shape = DeltaConfig(tune_method=method)
    delta = attach_delta(model, shape, config.stack)
    delta.initialise([str(k) for k in range(config.stack)])
    optimizer, rng = make_optimizer(delta, [1e-3] * config.stack), random.Random(0)
    device, rate = model.device, model.config.dropout_rate
    settings = greedy_settings(model.config, config.max_output_length)
    settings.eos_token_id = None  # random weights end nowhere; both ways make all steps
    seeds, ends = [f"0/{k}/0" for k in range(config.stack)], model.config.eos_token_id
    now: dict = {}

    def draw() -> None:
        now["members"] = lines(rng)
        now["batch"] = collate_stack(now["members"], model.config.pad_token_id)

    def update(losses: Tensor) -> None:
        losses.sum().backward()
        clip_gradients(delta, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ours_generated() -> None:
        model.config.eos_token_id = -1
        greedy(delta, [[x for x, _ in member] for member in now["members"]], config.max_output_length)
        model.config.eos_token_id = ends

    kinds = {
        "update": (
            True,
            lambda: update(stock_losses(delta, now["batch"].to(device))),
            lambda: update(member_losses(delta, now["batch"], OwnStreams(rate, seeds, device))),
        ),
        "scoring": (
            False,
            lambda: stock_losses(delta, now["batch"].to(device)),
            lambda: member_losses(delta, now["batch"]),
        ),
        "generation": (False, lambda: stock_greedy(delta, now["batch"].to(device), settings), ours_generated),
    }
    rows = []
    for kind, (training, plain, ours) in kinds.items():
        model.train(training)
        times: dict[str, list[float]] = {"plain": [], "ours": []}
        shares = []
        with torch.set_grad_enabled(training):
            for _ in range(config.repeats + 1):
                draw()
                shares.append(now["batch"].attention_mask.float().mean().item())
                for name, way in (("plain", plain), ("ours", ours)):
                    times[name].append(measure.seconds(way, config.clock))
        warm = {name: seconds[1:] for name, seconds in times.items()}
        real = round(sum(shares[1:]) / config.repeats, 2)
        rows.append(measure.row(f"{method}, {what}, {kind}", warm, real_tokens=real))
    return rows


def bench(config: Config) -> None:
    """Every method on every kind of lines."""
    if config.tasks or config.groups:
        tokenizer = load_backbone(config).tokenizer
        groups = GROUPS if config.groups else {" ".join(config.tasks): config.tasks}
        kinds = {name: task_lines(config, tokenizer, tasks) for name, tasks in groups.items()}
        kinds["equal lengths"] = random_lines(config, True, len(tokenizer))
    else:
        kinds = {"unlike lengths": random_lines(config, False), "equal lengths": random_lines(config, True)}
    rows = [
        row
        for method in config.methods
        for what, lines in kinds.items()
        for row in compare(config, method, what, lines)
    ]
    measure.write(config.name, config, rows)


if __name__ == "__main__":
    main(bench, Config, __doc__)
