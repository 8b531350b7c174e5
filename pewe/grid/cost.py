"""What a step costs: floating-point operations, memory and disk, from the configuration, the backbone's shapes and the data.

A product of a weight with a token is 2 FLOP a weight. The backbone is frozen: a backward pass goes to the activations only and
costs as much as a forward one. No padding is computed, so that tokens count as they are; a generated answer passes the decoder
token by token. The delta itself, optimiser, norms and softmax are left out: they are in the measured share of the peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pewe.data import TaskConfig, read_examples, sampled_prefixes, split_path
from pewe.model_files import json_object
from pewe.tokens import tokenise
from pewe.tuning.config import TuneConfig

SAMPLE = 200  # lines of a file that are looked at


@dataclass(frozen=True)
class Shapes:
    """The numbers of a T5's config.json that its cost follows from."""

    d_model: int
    d_ff: int
    inner: int  # heads times d_kv
    layers: int
    decoder_layers: int
    vocabulary: int
    matrices: int  # of a feed-forward: 3 where it is gated

    @property
    def feed_forward(self) -> int:
        """Weights of one."""
        return self.matrices * self.d_model * self.d_ff

    def of_input(self, length: float, more_keys: int = 0) -> float:
        """FLOP of a forward for a token of an input of this length: the encoder, and its keys and values for the decoder.

        `more_keys` are those of a prefix, in front of every self-attention.
        """
        scores = 2 * self.inner * (length + more_keys)
        layer = 4 * self.d_model * self.inner + self.feed_forward + scores
        return 2.0 * (self.layers * layer + self.decoder_layers * 2 * self.d_model * self.inner)

    def of_output(self, length: float, more_keys: int = 0) -> float:
        """FLOP of a forward for a token of the answer to such an input: the decoder without those, and the head."""
        scores = 2 * self.inner * (length + more_keys)
        layer = 6 * self.d_model * self.inner + self.feed_forward + scores
        return 2.0 * (self.decoder_layers * layer + self.vocabulary * self.d_model)

    def forward(self, lines: "Lines", more_keys: int = 0) -> float:
        """FLOP of a forward for a line with its answer, read or generated."""
        inputs = lines.inputs * self.of_input(lines.inputs, more_keys)
        return inputs + lines.outputs * self.of_output(lines.inputs, more_keys)

    @property
    def parameters(self) -> int:
        """All weights but for norms and biases."""
        attention = 4 * self.d_model * self.inner
        encoder = self.layers * (attention + self.feed_forward)
        decoder = self.decoder_layers * (2 * attention + self.feed_forward)
        return encoder + decoder + 2 * self.vocabulary * self.d_model


def shapes_in(folder: Path) -> Shapes:
    """Of a model's folder. Raises UserError where there is no config.json, or it is no T5's."""
    content = json_object(folder / "config.json")
    return Shapes(
        d_model=content["d_model"],
        d_ff=content["d_ff"],
        inner=content["num_heads"] * content["d_kv"],
        layers=content["num_layers"],
        decoder_layers=content.get("num_decoder_layers") or content["num_layers"],
        vocabulary=content["vocab_size"],
        matrices=3 if "gated" in content.get("feed_forward_proj", "relu") else 2,
    )


@dataclass(frozen=True)
class Lines:
    """A data file: its lines, the tokens of an input and of an answer on average, and the most of each, after they are cut."""

    count: int
    inputs: float
    outputs: float
    longest: tuple[int, int] = (0, 0)


@cache
def lines_of(path: Path, tokenizer, longest_input: int, longest_output: int) -> Lines:
    """Of a TSV file, by some of its lines, evenly spread."""
    examples = read_examples(path)
    seen = examples[:: max(1, len(examples) // SAMPLE)]
    inputs = tokenise(tokenizer, [f" [{path.parent.name}] {example.input}" for example in seen], longest_input)
    outputs = tokenise(tokenizer, [f"<extra_id_0>{example.outputs[0]}" for example in seen], longest_output)
    longest = max(map(len, inputs)), max(map(len, outputs))
    return Lines(len(examples), sum(map(len, inputs)) / len(seen), sum(map(len, outputs)) / len(seen), longest)


def split_lines(config: TaskConfig, tokenizer, task: str, split: str) -> Lines:
    """Of a task's split: the first of its prefixes."""
    full = split == "train" and getattr(config, "full_train", False)
    path = split_path(Path(config.task_dir), task, sampled_prefixes(config, task)[0], split, full)
    return lines_of(path, tokenizer, config.max_input_length, config.max_output_length)


def of_run(shapes: Shapes, config: TuneConfig, splits: Mapping[str, Lines], batch_size: int) -> float:
    """FLOP of a tuning run that is not stopped early: updates forward and back, validations, the test."""
    keys = config.prefix_num if config.tune_method == "prefix" else 0
    train, dev, test = (
        lines.count * shapes.forward(lines, keys) for lines in (splits[name] for name in ("train", "dev", "test"))
    )
    updates = config.train_iters if config.do_train else 0
    validations = updates // config.valid_interval + (config.start_is_candidate or not config.do_train)
    batch = train / splits["train"].count * batch_size
    return 2 * updates * batch + validations * dev + (test if config.do_predict else 0.0)


def share_of_peak(shapes: Shapes) -> float:
    """The part of a large matrix product's speed that a run reaches on a CPU.

    Measured: 0.18 for stacks of the mini T5 (d_model 128), 0.4 for Flan-T5-small (512) without a stack; a curve through both.
    """
    return 0.65 * shapes.d_model / (shapes.d_model + 330)
