"""Fixtures: tiny random T5s of unequal depths, tiny data, and the reference numbers of the original code where present."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from pewe.backbone import Backbone, BackboneConfig, load_backbone
from pewe.checkpoint import task_checkpoint, write_checkpoint
from pewe.deltas import DeltaConfig, attach_delta

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT.parent / "shared" / "golden"
GOLDEN_FUSION = ROOT.parent / "shared" / "golden_fusion"
GOLDEN_PEMT = ROOT.parent / "shared" / "golden_pemt"
PAPER = ROOT.parent / "shared" / "paper"
CROSSFIT = ROOT.parent / "shared" / "data" / "crossfit"
METHODS = ("adapter", "lora", "prefix")

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
        "vocab_size": 96, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    }  # fmt: skip
    return T5Config(**{**settings, **changes})


def tiny_t5(**changes) -> T5ForConditionalGeneration:
    """A random tiny T5, the same in every test."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lm_head" in name or "shared" in name or "relative" in name:
                parameter.normal_(0, 0.5)
    return model


def filled(model, name: str, stack: int, seed: int = 0):
    """A stack of deltas on the model with every tensor random, so that none is the identity."""
    delta = attach_delta(model, small(name), stack)
    generator = torch.Generator().manual_seed(seed)
    states = [
        {key: torch.randn(p.shape[1:], generator=generator) * 0.3 for key, p in delta.named.items()}
        for _ in range(stack)
    ]
    delta.load(states)
    return delta, states


def random_batch(rows: int, seed: int = 1, vocab: int = 96) -> dict[str, torch.Tensor]:
    """Inputs and labels of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab, (rows, 9), generator=generator)
    labels = torch.randint(2, vocab, (rows, 5), generator=generator)
    mask = (torch.arange(9) < torch.randint(4, 10, (rows, 1), generator=generator)).long()
    labels[torch.arange(5) >= torch.randint(2, 6, (rows, 1), generator=generator)] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


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


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Three tasks of the mini gym cut to a few lines, one of them with several answers in its dev lines."""
    out = tmp_path_factory.mktemp("tiny_data")
    for task in MINI_TASKS:
        (out / task).mkdir()
        for path in (ROOT / "data" / "mini_gym" / task).glob("*.tsv"):
            lines = path.read_text(encoding="utf-8").splitlines()
            random.Random(path.name).shuffle(lines)
            keep = 24 if "full" in path.name else 12
            (out / task / path.name).write_text("\n".join(lines[:keep]) + "\n", encoding="utf-8")
    return out


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A folder with a tiny random T5 and the tokenizer of the embedded backbone."""
    out = tmp_path_factory.mktemp("tiny_t5")
    embedded = ROOT / "checkpoints" / "mini_t5"
    vocab = json.loads((embedded / "config.json").read_text())["vocab_size"]
    tiny_t5(vocab_size=vocab).save_pretrained(out)
    for path in embedded.iterdir():
        if path.is_file() and ("token" in path.name or "spiece" in path.name or "special" in path.name):
            shutil.copy(path, out)
    return out


@pytest.fixture
def small_files():
    """No file of this process grows beyond 4 kB: as a full disk, but for the text of the error."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
