"""A zoo of fine-tuned models: each is trained once, in a folder named by a digest of all that it depends on.

<zoo>/<domains>-<digest>/recipe.json                      what the digest stands for
                         config.json, model.safetensors   the model, as transformers saves it
                         statistics/<digest>.safetensors  its Gram matrices and Fisher values
                         logits/<test set>.safetensors    its logits on a test set
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging as transformers_logging

from pewe.cli import SEED, UserError, flag
from pewe.data import IGNORED, LONGEST
from pewe.fusion.collect import Batch, collect, gold_loss
from pewe.fusion.domains import SUFFIX, Domain, Row, collate, read_domains
from pewe.fusion.store import Statistics, read_statistics, write_statistics
from pewe.fusion.yesno import answer_form, answer_logits
from pewe.identity import digest, file_digest
from pewe.results import replacing, write_json

WARMUP = 0.06  # share of the updates
SCORED = 64  # sentences per forward without gradients


@dataclass
class ZooConfig:
    """Data, training and statistics of the individual models."""

    zoo: str = flag("checkpoints/fusion_zoo", "folder of the trained models, shared by experiments", decides=False)
    model: str = flag(
        "checkpoints/mini_bert",
        "folder of the pre-trained encoder (yesno: T5) and its tokenizer, the common start",
        decides=False,
    )
    layers: int = flag(0, "use only so many layers of the encoder, the first ones (0: all)", low=0)
    kind: str = flag(
        "single",
        "single, multi (one, several labels per sentence), tokens (IOB tags of words) or yesno (a T5, multi)",
        choices=SUFFIX,
    )
    data_dir: str = flag("data/mini_emotions", "folder of the domains", decides=False)
    max_length: int = flag(128, "tokens of a text at most", low=3, high=LONGEST)
    rename: list[str] = flag([], "OLD=NEW, labels or entity types that mean the same")
    train_limit: int = flag(0, "training sentences per domain at most (0: all)", low=0)
    test_limit: int = flag(0, "test sentences per domain at most (0: all)", low=0)
    updates: int = flag(300, "updates of an individual model; of multi-task training so many per domain", low=1)
    batch_size: int = flag(16, "sentences per update", low=1)
    learning_rate: float = flag(
        1e-4, "peak of AdamW's learning rate, after 6 % of the updates; then linear to 0", above=0
    )
    fisher: str = flag(
        "empirical", "Fisher: empirical (gold labels) or hard (the model's own)", choices=("empirical", "hard")
    )
    examples: int = flag(1000, "training sentences at most for Gram matrices and Fisher", low=1)
    as_original: bool = flag(
        False, "as the release: count padding, and --examples in batches; yesno: answers of any token"
    )


TRAINING = ("model", "layers", "kind", "max_length", "updates", "batch_size", "learning_rate")
STATISTICS = ("fisher", "examples", "batch_size", "as_original")


class Zoo:
    """The models of one experiment, trained or computed when they are asked for the first time."""

    def __init__(self, config: ZooConfig, names: Sequence[str]):
        transformers_logging.set_verbosity_error()  # it warns that the head is new
        self.config, self.root = config, Path(config.zoo)
        self.tokenizer = load_tokenizer(config.model)
        limits = {"train": config.train_limit, "test": config.test_limit}
        self.domains, self.labels = read_domains(
            Path(config.data_dir), names, config.kind, self.tokenizer, config.max_length, limits, renamed(config.rename)
        )
        kinds = {"tokens": AutoModelForTokenClassification, "yesno": AutoModelForSeq2SeqLM}
        self.kind = kinds.get(config.kind, AutoModelForSequenceClassification)
        self.form = answer_form(self.tokenizer) if config.kind == "yesno" else None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.start = digest([file_digest(path) for path in sorted(Path(config.model).glob("*.safetensors"))])

    def recipe(self, names: Sequence[str], seed: int, head_seed: int) -> dict:
        """All that a model depends on."""
        own = {field.name: getattr(self.config, field.name) for field in fields(ZooConfig)}
        data = {name: self.domains[name].fingerprints["train"] for name in names}
        return {**{name: own[name] for name in TRAINING}, "start": self.start, "data": data, "labels": self.labels,
                "seed": seed, "head_seed": head_seed}  # fmt: skip

    def folder(self, names: Sequence[str], seed: int, head_seed: int) -> Path:
        """Where the model of these domains and seeds lies, or will lie."""
        return self.root / f"{'+'.join(names)[:60]}-{digest(self.recipe(names, seed, head_seed))}"

    def trained(self, names: Sequence[str], seed: int, head_seed: int) -> Path:
        """Its folder, after training it (jointly on several domains) if it is not there."""
        folder = self.folder(names, seed, head_seed)
        if not (folder / "model.safetensors").is_file():
            model = self.new_model(head_seed)
            train(model, [self.domains[name].train for name in names], self.config, self.tokenizer.pad_token_id, seed)
            write_json(folder / "recipe.json", self.recipe(names, seed, head_seed))
            model.config.save_pretrained(folder)
            with replacing(folder / "model.safetensors") as temporary:
                weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
                save_file(weights, temporary, {"format": "pt"})
        return folder

    def new_model(self, head_seed: int) -> PreTrainedModel:
        """The common start with a new head for all labels."""
        torch.manual_seed(head_seed % SEED)
        names, layers = dict(enumerate(self.labels)), self.config.layers
        settings = {"id2label": names, "label2id": {label: number for number, label in names.items()}}
        if layers:
            settings["num_hidden_layers"] = layers
        return _load(self.kind, self.config.model, **settings).to(self.device)

    def model(self, folder: Path) -> PreTrainedModel:
        """A trained model."""
        return _load(self.kind, str(folder)).to(self.device)

    def statistics(self, folder: Path, name: str) -> Statistics:
        """The statistics of the model in this folder on the training data of its domain."""
        settings = {key: getattr(self.config, key) for key in STATISTICS}
        path = folder / "statistics" / f"{digest(settings)}.safetensors"
        if not path.is_file():
            c, known = self.config, sorted(self.domains[name].known)
            batches = self.batches(self.domains[name].train, c.batch_size)
            found = collect(self.model(folder), batches, True, c.fisher, c.examples, c.as_original)
            write_statistics(path, Statistics(found.tensors, {**found.info, "labels": known}))
        return read_statistics(path)

    def batches(self, rows: list[Row], size: int) -> Iterator[Batch]:
        """The rows in their order."""
        starts = range(0, len(rows), size)
        return (collate(rows[i : i + size], self.tokenizer.pad_token_id, self.config.kind) for i in starts)

    def test_print(self, name: str) -> str:
        """All that the answers of a model on a domain's test set depend on, besides the model."""
        return self.domains[name].fingerprints["test"] + ("-free" if self.form and self.config.as_original else "")

    def stored_logits(self, folder: Path, domain: Domain) -> Tensor:
        """`logits` of the model in this folder, computed once."""
        path = folder / "logits" / f"{domain.name}-{self.test_print(domain.name)}.safetensors"
        if not path.is_file():
            with replacing(path) as temporary:
                save_file({"logits": self.logits(self.model(folder), domain)}, temporary)
        return load_file(path)["logits"]

    @torch.no_grad()
    def logits(self, model: PreTrainedModel, domain: Domain) -> Tensor:
        """Logits (R, C) of every test sentence, of every first token of a word, or of every question."""
        model.eval()
        found = []
        for batch in self.batches(domain.test, SCORED):
            labels = batch.pop("labels")
            inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
            if self.form:
                found.append(answer_logits(model, inputs, labels, self.form, self.config.as_original))
                continue
            logits = model(**inputs).logits.cpu()
            found.append(logits[labels != IGNORED] if logits.dim() == 3 else logits)
        return torch.cat(found)


def renamed(pairs: Sequence[str]) -> dict[str, str]:
    """OLD=NEW as a dictionary. Raises UserError for anything else."""
    if bad := [pair for pair in pairs if pair.count("=") != 1]:
        raise UserError(f"--rename needs OLD=NEW, not {bad[0]!r}")
    return dict(pair.split("=") for pair in pairs)


def load_tokenizer(model: str):
    """The tokenizer of a model folder. Raises UserError where there is none."""
    if not (Path(model) / "config.json").is_file():
        raise UserError(f"--model {model} is no model folder: expected config.json, *.safetensors and a tokenizer")
    return _load(AutoTokenizer, model)


def _load(kind: type, folder: str, **settings):
    try:
        return kind.from_pretrained(folder, **settings)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {folder!r}: {str(error).splitlines()[0]}") from None


def train(model: PreTrainedModel, domains: Sequence[list[Row]], config: ZooConfig, pad: int, seed: int) -> None:
    """Fine-tune on the rows of one domain, or jointly on several; the last weights are kept.

    A batch comes from one domain, drawn with a probability proportional to its number of rows, as in the release.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    streams = [shuffled(rows, config.batch_size, order) for rows in domains]
    shares = torch.tensor([float(len(rows)) for rows in domains])
    updates = config.updates * len(domains)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * updates), updates)
    model.train()
    for _ in range(updates):
        rows = next(streams[int(torch.multinomial(shares, 1, generator=order))])
        batch = {name: tensor.to(model.device) for name, tensor in collate(rows, pad, config.kind).items()}
        labels = batch["labels"] if model.config.is_encoder_decoder else batch.pop("labels")
        gold_loss(model(**batch).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def shuffled(rows: list[Row], size: int, order: torch.Generator) -> Iterator[list[Row]]:
    """Endless batches of rows of like length, every row once per pass: eight batches are drawn together and sorted."""
    left: list[int] = []
    while True:
        while len(left) < 8 * size:
            left += torch.randperm(len(rows), generator=order).tolist()
        pool, left = sorted(left[: 8 * size], key=lambda number: len(rows[number][0])), left[8 * size :]
        for batch in torch.randperm(8, generator=order).tolist():
            yield [rows[number] for number in pool[batch * size : (batch + 1) * size]]
