"""What a step costs: its work, from the configuration, the backbone's shapes and the data.

Work is counted in FLOP of a large matrix product, whose speed is measured where the plan is made. Three things take time:

* products: 2 FLOP a weight and token. The backbone is frozen: a backward pass goes to the activations only and costs as much
  as a forward one. No padding is computed, so that tokens count as they are; a generated answer passes the decoder token by token.
* numbers that are no product: norms, activations, dropout, softmax pass over what was written. One number takes as long as
  `NUMBER` FLOP, on the way back `BACK` times as long, so that narrow backbones, and a prefix's many keys, are far from the
  speed of a product.
* starting the operations of a layer, `START` seconds, once for all members of a stack.

The delta's own products and the optimiser are left out.
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
# Measured in CPU time of one thread: updates of 12 members on the mini T5 (d_model 128) and of 8 on Flan-T5-small (512), adapters;
# and updates of 12 members against those of one.
NUMBER = 420.0
BACK = 1.5  # by the tuning of Flan-T5-small and T5-base in benchmarks/results/roofline.json
START = 3.5e-3


@dataclass(frozen=True)
class Shapes:
    """The numbers of a T5's config.json that its cost follows from."""

    d_model: int
    d_ff: int
    heads: int
    inner: int  # heads times d_kv
    layers: int
    decoder_layers: int
    vocabulary: int
    matrices: int  # of a feed-forward: 3 where it is gated

    @property
    def feed_forward(self) -> int:
        """Weights of one."""
        return self.matrices * self.d_model * self.d_ff

    def of_input(self, length: float, more_keys: int = 0, number: float = NUMBER) -> float:
        """Work of a forward for a token of an input of this length: the encoder, and its keys and values for the decoder.

        `more_keys` are those of a prefix, in front of every self-attention.
        """
        keys = length + more_keys
        layer = 4 * self.d_model * self.inner + self.feed_forward + 2 * self.inner * keys
        products = self.layers * layer + self.decoder_layers * 2 * self.d_model * self.inner
        numbers = self.layers * self._numbers(1, 4, keys) + self.decoder_layers * 2 * self.inner
        return 2.0 * products + number * numbers

    def of_output(self, length: float, more_keys: int = 0, number: float = NUMBER) -> float:
        """Work of a forward for a token of the answer to such an input: the decoder without those, and the head."""
        keys = length + more_keys
        layer = 6 * self.d_model * self.inner + self.feed_forward + 2 * self.inner * keys
        products = self.decoder_layers * layer + self.vocabulary * self.d_model
        numbers = self.decoder_layers * self._numbers(2, 6, keys) + 3 * self.vocabulary  # logits, softmax, losses
        return 2.0 * products + number * numbers

    def _numbers(self, attentions: int, projections: int, keys: float) -> float:
        """Numbers that a layer writes for a token: norms and sums, projections, feed-forward, scores and weights."""
        own = 2 * (attentions + 1) * self.d_model + projections * self.inner + (self.matrices + 1) * self.d_ff
        return own + 2 * self.heads * keys

    def forward(self, lines: "Lines", more_keys: int = 0, number: float = NUMBER) -> float:
        """Work of a forward for a line with its answer, read or generated."""
        inputs = lines.inputs * self.of_input(lines.inputs, more_keys, number)
        return inputs + lines.outputs * self.of_output(lines.inputs, more_keys, number)

    def update(self, lines: "Lines", more_keys: int = 0) -> float:
        """Work of a line forward and back."""
        return self.forward(lines, more_keys) + self.forward(lines, more_keys, BACK * NUMBER)

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
        heads=content["num_heads"],
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


@dataclass(frozen=True)
class Work:
    """In FLOP of a large product, and the layers whose operations are started, forward and back, for a whole stack."""

    flop: float
    layers: float

    def seconds(self, peak: float, members: int = 1) -> float:
        """Of one of so many members, where a large product reaches `peak` FLOP/s."""
        return self.flop / peak + self.layers * START / members


def of_run(shapes: Shapes, config: TuneConfig, splits: Mapping[str, Lines], batch_size: int) -> Work:
    """A tuning run that is not stopped early: updates forward and back, validations, what is looked at on the test lines.

    The best step is not looked at again where --trace_test has: any validated step is taken to be as likely the best.
    """
    keys = config.prefix_num if config.tune_method == "prefix" else 0
    work = {name: splits[name].count * shapes.forward(splits[name], keys) for name in ("dev", "test")}
    updates = config.train_iters if config.do_train else 0
    first = 0 if config.start_is_candidate or not config.do_train else config.valid_interval
    steps = range(first, updates + 1, config.valid_interval)
    validations, unseen = len(steps), [step for step in steps if step not in config.trace_test]
    tests = config.do_predict * len(unseen) / max(1, validations) + len(config.trace_test)
    test = splits["test"]
    likelihood = test.count * test.outputs * shapes.of_output(test.inputs, keys) if config.trace_test else 0.0
    tuned = updates * batch_size * shapes.update(splits["train"], keys)
    flop = tuned + validations * work["dev"] + tests * (work["test"] + likelihood)
    micro = -(-batch_size // config.micro_batch_size)
    layers = 2.0 * updates * micro * (shapes.layers + shapes.decoder_layers)
    for name, times in (("dev", validations), ("test", tests)):
        batches = -(-splits[name].count // config.predict_batch_size)
        layers += times * batches * (shapes.layers + splits[name].outputs * shapes.decoder_layers)
    return Work(flop, layers)
