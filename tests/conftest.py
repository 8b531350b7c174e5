"""Fixtures: tiny random T5s of unequal depths, tiny data, tiny checkpoints, and the original code's numbers where present.

What the numbers of tests/golden depend on is drawn by `draws`, the same with every version of torch and numpy.
"""

import contextlib
import itertools
import json
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from pewe import own_tasks
from pewe.backbone import Backbone, BackboneConfig, load_backbone, own_head
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import read_checkpoint, task_checkpoint, write_checkpoint
from pewe.deltas.config import DeltaConfig
from pewe.similarity.config import TargetConfig
from pewe.tuning.config import TuneConfig
from task_list import GROUP_OF, METRICS, TASK_LISTS, QA_task_list

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT.parent / "shared" / "golden"
GOLDEN_FUSION = ROOT.parent / "shared" / "golden_fusion"
GOLDEN_PEMT = ROOT.parent / "shared" / "golden_pemt"
PAPER = ROOT.parent / "shared" / "paper"
CROSSFIT = ROOT.parent / "shared" / "data" / "crossfit"
METHODS = ("adapter", "lora", "prefix")
VERSIONS = {"v1.1": {}, "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True}}

SMALL = {
    "adapter": {"tune_method": "adapter", "adapter_size": 4},
    "pfeiffer": {"tune_method": "adapter", "adapter_type": "pfeiffer", "adapter_size": 4},
    "lora": {"tune_method": "lora", "lora_r": 3, "lora_alpha": 6.0},
    "prefix": {"tune_method": "prefix", "prefix_num": 5, "prefix_r": 6},
}


def small(name: str) -> DeltaConfig:
    """A small delta of this kind; the sizes are those of the reference numbers."""
    return DeltaConfig(**SMALL[name])


def tiny_config(**changes) -> T5Config:
    """Three encoder and two decoder layers; heads times head size differs from d_model, as in T5 v1.1 small."""
    settings = {
        "vocab_size": 96,
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 40,
        "num_heads": 3,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    return T5Config(**{**settings, **changes})


def draws(text: str, *shape: int) -> torch.Tensor:
    """N(0, 1), a function of the text alone."""
    numbers = np.random.RandomState(zlib.crc32(text.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(numbers, np.float32))


def fill(model, text: str = ""):
    """The model with every parameter drawn; the same for the same text on every machine."""
    head_size = getattr(model.config, "d_kv", 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            numbers = draws(text + name, *parameter.shape)
            if parameter.dim() == 1:
                parameter.copy_(0.1 * numbers + (not name.endswith("bias")))
            elif "lm_head" in name or "shared" in name or "relative" in name or "embeddings" in name:
                parameter.copy_(0.5 * numbers)
            else:  # as T5 starts, so that attention is not sharp
                fan_in = parameter.shape[1] * (head_size if name.endswith("Attention.q.weight") else 1)
                parameter.copy_(numbers / fan_in**0.5)
    return model


def tiny_t5(**changes) -> T5ForConditionalGeneration:
    """A random tiny T5, the same in every test and on every machine."""
    return fill(new_t5(tiny_config(**changes)))


def new_t5(config: T5Config) -> T5ForConditionalGeneration:
    """A T5 of this configuration; v1.1 has an output head of its own."""
    model = T5ForConditionalGeneration(config).eval()
    return model if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings) else own_head(model)


def random_state(delta, text: str, std: float = 0.3) -> dict[str, torch.Tensor]:
    """A state of this delta with every tensor random, so that none is the identity."""
    return {name: std * draws(f"{text}/{name}", *p.shape[1:]) for name, p in delta.named.items()}


def filled(model, name: str, stack: int, seed: int = 0):
    """A stack of random deltas on the model, and their states."""
    delta = attach_delta(model, small(name), stack)
    states = [random_state(delta, f"{seed}/{number}") for number in range(stack)]
    delta.load(states)
    return delta, states


def random_batch(rows: int, seed: int = 1, vocab: int = 96) -> dict[str, torch.Tensor]:
    """Inputs and labels of unequal lengths."""
    generator = np.random.RandomState(seed)
    ids = torch.from_numpy(generator.randint(2, vocab, (rows, 9)))
    labels = torch.from_numpy(generator.randint(2, vocab, (rows, 5)))
    mask = (torch.arange(9) < torch.from_numpy(generator.randint(4, 10, (rows, 1)))).long()
    labels[torch.arange(5) >= torch.from_numpy(generator.randint(2, 6, (rows, 1)))] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws from torch's own generator does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def forgotten():
    """Tasks that a test declares in a tasks.toml are forgotten after it."""
    known = (METRICS, GROUP_OF, own_tasks._declared, TASK_LISTS)
    before = [dict(one) for one in known[:3]], {name: list(tasks) for name, tasks in TASK_LISTS.items()}
    yield
    for now, then in zip(known, [*before[0], before[1]], strict=True):
        now.clear()
        now.update(then)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers made by the original code; tests that need it are skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("the reference numbers of the original code are not here")
    return GOLDEN


@pytest.fixture(scope="session")
def golden_fusion() -> Path:
    """The folder of reference numbers of Dataless Knowledge Fusion; tests that need it are skipped where it is absent."""
    if not GOLDEN_FUSION.is_dir():
        pytest.skip("the reference numbers of Dataless Knowledge Fusion are not here")
    return GOLDEN_FUSION


@pytest.fixture(scope="session")
def golden_pemt() -> Path:
    """The folder of reference numbers of PEMT; tests that need it are skipped where it is absent."""
    if not GOLDEN_PEMT.is_dir():
        pytest.skip("the reference numbers of PEMT are not here")
    return GOLDEN_PEMT


def golden_backbone() -> Backbone:
    """A fresh copy of the reference backbone, on the CPU."""
    return load_backbone(BackboneConfig(model=str(GOLDEN / "backbone"), device="cpu"))


def golden_state(method: str, task: str, kind: str = "source") -> dict[str, torch.Tensor]:
    """A delta that the original code trained."""
    return load_file(GOLDEN / method / kind / f"{task}.safetensors")


@pytest.fixture(scope="session")
def golden_checkpoints(golden, tmp_path_factory) -> Path:
    """`<folder>/<method>/{source,random}/<task>/checkpoint-best.pt` with the original's deltas."""
    out = tmp_path_factory.mktemp("golden_checkpoints")
    for method in METHODS:
        for kind in ("source", "random"):
            for path in (golden / method / kind).glob("*.safetensors"):
                write_checkpoint(task_checkpoint(out / method / kind, path.stem), method, load_file(path), {})
    return out


def golden_npz(path: str) -> dict[str, np.ndarray]:
    """All arrays of one reference file."""
    with np.load(GOLDEN / path) as arrays:
        return dict(arrays)


def fusion_npz(path: str) -> dict[str, torch.Tensor]:
    """All arrays of one reference file of Dataless Knowledge Fusion, as tensors."""
    with np.load(GOLDEN_FUSION / path) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


MINI_TASKS = ("mini_read_towns", "mini_read_people", "mini_yesno_towns")
# Six of the paper's tasks, with lines of the mini gym; three of them have several answers in every dev line
LINES_OF = {
    "adversarialqa": "mini_read_people",
    "ai2_arc": "mini_choice_towns",
    "boolq": "mini_yesno_towns",
    "codah": "mini_choice_animals",
    "eli5-eli5": "mini_closed_people",
    "web_questions": "mini_read_animals",
}


def write_tiny_data(out: Path, lines_of: dict[str, str]) -> Path:
    """A folder per task with a few lines of a task of the mini gym."""
    for task, source in lines_of.items():
        (out / task).mkdir(parents=True)
        for path in (ROOT / "data" / "mini_gym" / source).glob("*.tsv"):
            lines = path.read_text(encoding="utf-8").splitlines()
            random.Random(path.name).shuffle(lines)
            keep = 24 if "full" in path.name else 12
            name = path.name.replace(source, task)
            (out / task / name).write_text("\n".join(lines[:keep]) + "\n", encoding="utf-8")
    return out


def write_tiny_backbone(out: Path, **changes) -> Path:
    """A folder with a tiny random T5 and the tokenizer of the embedded backbone."""
    embedded = ROOT / "checkpoints" / "mini_t5"
    vocab = json.loads((embedded / "config.json").read_text())["vocab_size"]
    tiny_t5(vocab_size=vocab, **changes).save_pretrained(out)
    for path in embedded.iterdir():
        if path.is_file() and ("token" in path.name or "spiece" in path.name or "special" in path.name):
            shutil.copy(path, out)
    return out


def write_tiny_checkpoints(out: Path) -> Path:
    """`<folder>/<method>/{source,random}/<task>/checkpoint-best.pt`: a random delta for each of the paper's 32 tasks.

    Each is larger than the one before, so that a similarity tells them apart; a prefix is a product of three tensors.
    """
    for method in METHODS:
        delta = attach_delta(tiny_t5(), small(method))
        for kind in ("source", "random"):
            for number, task in enumerate(QA_task_list, start=1):
                std = number / (50 if method == "prefix" else 100)
                state = random_state(delta, f"{method}/{kind}/{task}", std)
                write_checkpoint(task_checkpoint(out / method / kind, task), method, state, {})
    return out


def write_tuned_pairs(out: Path, sources: Path, method: str, tasks: list[str]) -> list[tuple[str, str, float, float]]:
    """`<folder>/<target>/<source>/checkpoint-best.pt`, the sources moved by different lengths, result.tsv and zero.tsv.

    Returns target, source, dev score after tuning and before, which stand in the two tables in opposite orders.
    """
    rows = []
    for number, (target, source) in enumerate(itertools.product(tasks, tasks)):
        state = read_checkpoint(task_checkpoint(sources, source), method)
        moved = {
            name: t + (number % 5 + 1) / 100 * draws(f"{target}/{source}/{name}", *t.shape) for name, t in state.items()
        }
        write_checkpoint(task_checkpoint(out / target, source), method, moved, {})
        rows.append((target, source, number * 7 % 11 / 10, number * 3 % 7 / 10))
    for name, column, order in (("result", 2, 1), ("zero", 3, -1)):
        lines = [f"{row[0]}\t{row[1]}\t{row[column]}" for row in rows[::order]]
        (out / f"{name}.tsv").write_text("\n".join(["target\tsource\tdev", *lines]) + "\n", encoding="utf-8")
    return rows


def tuning_config(backbone: Path, data: Path, out: Path, **changes) -> TuneConfig:
    """A tuning command of few updates on tiny data."""
    common = {
        "model": str(backbone),
        "task_dir": str(data),
        "output_dir": str(out),
        "device": "cpu",
        "do_train": True,
        "do_predict": True,
        "learning_rate_list": [1e-2],
        "bsz_list": [4],
        "max_input_length": 32,
        "max_output_length": 6,
        "quiet": True,
    }
    return TuneConfig(**{**common, **changes})


def similarity_config(backbone: Path, data: Path, checkpoints: Path, out: Path, method: str = "adapter", **changes):
    """Settings of a measure on the deltas `<checkpoints>/<method>/{source,random}`, with the sizes of `SMALL`."""
    fields = {
        "model": str(backbone),
        "task_dir": str(data),
        "device": "cpu",
        "quiet": True,
        "pictures": False,
        "tasks": list(LINES_OF),
        "max_input_length": 32,
        "max_output_length": 12,
        "predict_batch_size": 5,
        **SMALL[method],
        "output_dir": str(out),
        "source_ckpt_path": str(checkpoints / method / "source"),
        "random_tuned_ckpt_path": str(checkpoints / method / "random"),
    }
    return TargetConfig(**{**fields, **changes})


def flags_of(kind: type, config, **changes):
    """A configuration of another class, with the flags of this one that it has."""
    given = {**vars(config), **changes}
    return kind(**{name: value for name, value in given.items() if name in kind.__dataclass_fields__})


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Three tasks of the mini gym cut to a few lines, one of them with several answers in its dev lines."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"), {task: task for task in MINI_TASKS})


@pytest.fixture(scope="session")
def paper_data(tmp_path_factory) -> Path:
    """The six tasks of `LINES_OF`."""
    return write_tiny_data(tmp_path_factory.mktemp("paper_data"), LINES_OF)


@pytest.fixture(scope="session")
def tiny_backbones(tmp_path_factory) -> dict[str, Path]:
    """Version of T5 -> a folder with a tiny random one and a tokenizer."""
    out = tmp_path_factory.mktemp("tiny_t5")
    return {version: write_tiny_backbone(out / version, **changes) for version, changes in VERSIONS.items()}


@pytest.fixture(scope="session")
def tiny_backbone(tiny_backbones) -> Path:
    """A folder with a tiny random T5 v1.1 and the tokenizer of the embedded backbone."""
    return tiny_backbones["v1.1"]


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> Path:
    """Random deltas of the paper's 32 tasks, on the tiny T5s of both versions."""
    return write_tiny_checkpoints(tmp_path_factory.mktemp("tiny_checkpoints"))


@contextlib.contextmanager
def small_files():
    """No file of this process grows beyond 4 kB: as a full disk, but for the text of the error.

    No fixture: pytest writes its own report before it takes one down, to what may be a file.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tasks_config(kind: type, backbone, data, out, **flags):
    """The configuration of a measure of tasks' lines, on the tiny world."""
    world = {"model": str(backbone), "task_dir": str(data), "tasks": list(MINI_TASKS), "output_dir": str(out)}
    return kind(**world, device="cpu", quiet=True, pictures=False, **flags)
