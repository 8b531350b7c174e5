"""A zoo of fine-tuned models: each is trained once, in a folder named by a digest of all that it depends on.

<zoo>/<domains>-<digest>/config.json, model.safetensors   the model, as transformers saves it
                         recipe.json                      what the digest stands for, and digests of both; written last
                         statistics/<digest>.safetensors  its Gram matrices and Fisher values
                         logits/<test set>.safetensors    its logits on a test set
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from pewe.batches import IGNORED
from pewe.cli import log
from pewe.errors import UserError
from pewe.files import hold, read_record, replacing, within, write_record
from pewe.flags import SEED
from pewe.fusion.domains import Domain, Row, collate, read_domains
from pewe.fusion.training import TrainingConfig, ZooConfig, train
from pewe.fusion.yesno import answer_form, answer_logits
from pewe.identity import deciding, difference, digest, files_digests, model_digest, part
from pewe.merging.collect import Batch, StatisticsConfig, collect, counts_of
from pewe.merging.statistics import Statistics, check_finite
from pewe.merging.store import WEIGHTS, made, read_tensors, stale
from pewe.whole_model import load_model, load_tokenizer, model_config, text_length

NAMES = 60  # characters of the domains' names in that of a model's folder
SCORED = 64  # sentences per forward without gradients
RECORD = "recipe.json"  # of a model's folder, written last
FILES = ("config.json", WEIGHTS)  # of which it holds digests


class Zoo:
    """The models of one experiment, trained or computed when they are asked for the first time."""

    def __init__(self, config: ZooConfig, names: Sequence[str]):
        transformers_logging.set_verbosity_error()  # it warns that the head is new
        kinds = {"tokens": AutoModelForTokenClassification, "yesno": AutoModelForSeq2SeqLM}
        self.kind = kinds.get(config.kind, AutoModelForSequenceClassification)
        self.root = Path(config.zoo)
        self.tokenizer = load_tokenizer(config.model)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.start = model_digest(config.model)
        self.config = replace(config, max_length=self.text_length(config))
        self.form = answer_form(self.tokenizer) if config.kind == "yesno" else None
        limits = {"train": config.train_limit, "test": config.test_limit}
        self.domains, self.labels = read_domains(
            Path(config.data_dir),
            names,
            config.kind,
            self.tokenizer,
            self.config.max_length,
            limits,
            renamed(config.rename),
        )
        for name, domain in self.domains.items():
            if all(label == IGNORED for _, labels in domain.test for label in labels):
                raise UserError(f"domain {name!r}: no label of its test set is in its training data")
            self.tell_cut(domain)

    def tell_cut(self, domain: Domain) -> None:
        """Say how many texts of a domain may have been cut."""
        length = self.config.max_length
        for split, rows in (("training", domain.train), ("test", domain.test)):
            if full := sum(len(ids) >= length for ids, _ in rows):
                log.info(
                    "domain %s: %d of %d %s texts fill --max_length %d, what is beyond is cut",
                    domain.name,
                    full,
                    len(rows),
                    split,
                    length,
                )

    def text_length(self, config: ZooConfig) -> int:
        """Tokens of a text at most. Raises UserError for a start that is damaged, of another kind or has fewer layers."""
        about, seq2seq = model_config(config.model), config.kind == "yesno"
        if about.is_encoder_decoder != seq2seq:
            wanted = "a T5" if seq2seq else "an encoder, without a decoder (a T5: --kind yesno)"
            raise UserError(f"--kind {config.kind} needs {wanted}; --model {config.model} is a {about.model_type}")
        deepest = getattr(about, "num_hidden_layers", 0)
        if not 0 <= config.layers <= deepest:
            raise UserError(f"--layers {config.layers}: {config.model} has {deepest} layers")
        start = load_model(self.kind, config.model, new_head=not seq2seq)
        return text_length(start, self.tokenizer, config.max_length)

    def recipe(self, names: Sequence[str], seed: int, head_seed: int) -> dict:
        """All that a model depends on; the order of its domains, unless the name of its folder tells it."""
        order = {} if len("+".join(names)) <= NAMES else {"order": list(names)}
        data = {name: self.domains[name].fingerprints["train"] for name in names}
        return {
            **deciding(part(self.config, TrainingConfig)),
            "start": self.start,
            "data": data,
            "labels": self.labels,
            "seed": seed,
            "head_seed": head_seed,
            **order,
        }

    def folder(self, names: Sequence[str], seed: int, head_seed: int) -> Path:
        """Where the model of these domains and seeds lies, or will lie."""
        return self.root / f"{'+'.join(names)[:NAMES]}-{digest(self.recipe(names, seed, head_seed))}"

    def missing(self, names: Sequence[str], seed: int, head_seed: int) -> str:
        """Why a model is still to be trained, in words; empty where it lies in its folder as it was written."""
        folder = self.folder(names, seed, head_seed)
        record = read_record(folder / RECORD)
        written = within(record, "files")
        if written is None:
            return "it is not finished"
        present = files_digests(folder / name for name in FILES)
        changed = [f"{name} is missing or damaged" for name in FILES if written.get(name) != present.get(name, "")]
        return difference(record, self.recipe(names, seed, head_seed)) or next(iter(changed), "")

    def trained(self, names: Sequence[str], seed: int, head_seed: int) -> Path:
        """Its folder, after training it (jointly on several domains) if it is not there; by one process at a time."""
        folder = self.folder(names, seed, head_seed)
        if self.missing(names, seed, head_seed):
            with hold(folder, wait=True):
                if why := self.missing(names, seed, head_seed):
                    log.info("%s: %s; training it", folder, why)
                    self.train(folder, names, seed, head_seed)
        return folder

    def train(self, folder: Path, names: Sequence[str], seed: int, head_seed: int) -> None:
        """Train a model and write its folder, the record last."""
        model = self.new_model(head_seed)
        train(
            model, [self.domains[name].train for name in names], self.config, self.tokenizer.pad_token_id, seed, folder
        )
        model.config.save_pretrained(folder)
        with replacing(folder / WEIGHTS) as temporary:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
            save_file(weights, temporary, {"format": "pt"})
        files = files_digests(folder / name for name in FILES)
        write_record(folder / RECORD, {**self.recipe(names, seed, head_seed), "files": files})

    def new_model(self, head_seed: int) -> PreTrainedModel:
        """The common start with a new head for all labels."""
        torch.manual_seed(head_seed % SEED)
        names, layers = dict(enumerate(self.labels)), self.config.layers
        settings = {"id2label": names, "label2id": {label: number for number, label in names.items()}}
        if layers:
            settings["num_hidden_layers"] = layers
        return load_model(self.kind, self.config.model, self.config.kind != "yesno", **settings).to(self.device)

    def model(self, folder: Path) -> PreTrainedModel:
        """A trained model."""
        return load_model(self.kind, str(folder)).to(self.device)

    def content(self, folder: Path) -> str:
        """A fingerprint of what the folder of a trained model holds."""
        return digest(files_digests(folder / name for name in FILES))

    def stored(self, folder: Path, path: Path, identity: dict, make: Callable[[], Statistics]) -> Statistics:
        """What a file of tensors below a model's folder holds, made from that model and this; by one process at a time."""
        identity = {"model": self.content(folder), **identity}
        if stale(path, identity):
            with hold(folder, wait=True):
                made(path, identity, make)
        return read_tensors(path)

    def statistics(self, folder: Path, name: str) -> Statistics:
        """The statistics of the model in this folder on the training data of its domain."""
        c, domain = self.config, self.domains[name]
        settings = deciding(part(c, StatisticsConfig))

        def make() -> Statistics:
            batches = self.batches(domain.train, c.batch_size)
            counts = counts_of(c.as_original)
            tensors, info = collect(self.model(folder), batches, True, c.fisher, c.examples, counts)
            return Statistics(tensors, {**info, "labels": sorted(domain.known)})

        path = folder / "statistics" / f"{digest(settings)}.safetensors"
        return self.stored(folder, path, {"data": domain.fingerprints["train"], **settings}, make)

    def batches(self, rows: list[Row], size: int) -> Iterator[Batch]:
        """The rows in their order."""
        starts = range(0, len(rows), size)
        return (collate(rows[i : i + size], self.tokenizer.pad_token_id, self.config.kind) for i in starts)

    def test_print(self, name: str) -> str:
        """All that the answers of a model on a domain's test set depend on, besides the model."""
        return self.domains[name].fingerprints["test"] + ("-free" if self.form and self.config.as_original else "")

    def stored_logits(self, folder: Path, domain: Domain) -> Tensor:
        """`logits` of the model in this folder, computed once."""
        test = self.test_print(domain.name)
        path = folder / "logits" / f"{domain.name}-{test}.safetensors"

        def make() -> Statistics:
            return Statistics({"logits": self.logits(self.model(folder), domain)}, {})

        return self.stored(folder, path, {"test": test}, make).tensors["logits"]

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
        logits = torch.cat(found)
        check_finite("logits", logits, f"domain {domain.name}")
        return logits


def renamed(pairs: Sequence[str]) -> dict[str, str]:
    """OLD=NEW as a dictionary. Raises UserError for anything else, and for an OLD with two names."""
    if bad := [pair for pair in pairs if pair.count("=") != 1 or not all(pair.split("="))]:
        raise UserError(f"--rename needs OLD=NEW, not {bad[0]!r}")
    found = dict(pair.split("=") for pair in pairs)
    if twice := [pair for pair in pairs if found[pair.split("=")[0]] != pair.split("=")[1]]:
        raise UserError(f"--rename gives {twice[0].split('=')[0]!r} two names")
    return found
