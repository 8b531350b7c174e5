"""Peak memory of statistics and merging for an encoder of BERT-base's size with random weights (110 million parameters).

    python -m benchmarks.fusion      (7 GB of disk)

Each step is a process of its own, whose largest resident size is printed: `import` loads the libraries only; `build` makes ten
models, copies of one with noise; `collect` takes Gram matrices and empirical Fisher values of random batches and writes them;
`merge` is RegMean of the ten, each with the same file of statistics.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from benchmarks import measure
from pewe.cli import main
from pewe.errors import UserError
from pewe.flags import flag
from pewe.merging.collect import collect
from pewe.merging.models import MergeConfig, merge_models
from pewe.merging.store import model_tensors, read_tensors, write_tensors

STATISTICS, MERGED = "statistics.safetensors", "merged/model.safetensors"


@dataclass(frozen=True)
class Config:
    """Sizes."""

    folder: str = flag("checkpoints/fusion_memory", "new folder for models and statistics, removed at the end")
    models: int = flag(10, "models to merge")
    width: int = flag(768, "width of the encoder")
    layers: int = flag(12, "its layers")
    batches: int = flag(4, "batches of 16 sentences of 128 tokens for the statistics")
    step: str = flag(
        "",
        "what this one process does: import, build, collect or merge (default: all, in processes of their own)",
    )


def build(config: Config) -> None:
    """The random encoder, and copies of it with noise."""
    heads = max(1, config.width // 64)
    bert = BertConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        intermediate_size=4 * config.width,
        num_labels=4,
    )
    first = Path(config.folder) / "0"
    BertForSequenceClassification(bert).save_pretrained(first)
    tensors = load_file(first / "model.safetensors")
    for number in range(1, config.models):
        noisy = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in tensors.items()}
        shutil.copytree(first, first.parent / str(number), ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(noisy, first.parent / str(number) / "model.safetensors", {"format": "pt"})


def collect_statistics(config: Config) -> None:
    """Statistics of the first model on random batches, written to a file."""
    model = BertForSequenceClassification.from_pretrained(Path(config.folder) / "0", trust_remote_code=False)
    ids = torch.randint(1000, 30000, (config.batches, 16, 128))
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": torch.randint(4, (16,))} for x in ids]
    found = collect(model, batches, fisher="empirical")
    write_tensors(Path(config.folder) / STATISTICS, found.tensors, {"model": "0"}, found.info)


def merge(config: Config) -> None:
    """The merged weights of all models, written to a file."""
    models = [model_tensors(Path(config.folder) / str(number)) for number in range(config.models)]
    statistics = [read_tensors(Path(config.folder) / STATISTICS)] * config.models
    merged = dict(merge_models(models, MergeConfig(method="regmean", ridge=1e-6), statistics))
    (Path(config.folder) / "merged").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, Path(config.folder) / MERGED)


def peak(command: list[str]) -> tuple[float, float]:
    """Seconds of `python -m` a command, and the largest resident size of its process in GiB."""
    code = "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')\n"
    code += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[:3])}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 2**20


def all_steps(config: Config) -> list[dict]:
    """Each step's peak memory."""
    folder = Path(config.folder)
    if folder.exists():
        raise UserError(f"--folder {folder} exists; it must be a new one, it is removed at the end")
    sizes = [f"--{name}={getattr(config, name)}" for name in ("folder", "models", "width", "layers", "batches")]
    steps = {step: ["benchmarks.fusion", *sizes, "--step", step] for step in STEPS}
    rows = []
    try:
        for step, command in steps.items():
            spent, size = peak(command)
            rows.append({"case": step, "ours_s": round(spent, 1), "peak_GiB": round(size, 2)})
            print(rows[-1], flush=True)
        rows[-1]["statistics_GB"] = round((folder / STATISTICS).stat().st_size / 1e9, 2)
        rows[-1]["model_GB"] = round((folder / MERGED).stat().st_size / 1e9, 2)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


STEPS = {"import": lambda config: None, "build": build, "collect": collect_statistics, "merge": merge}


def bench(config: Config) -> None:
    """One step, or all and their result."""
    if config.step:
        STEPS[config.step](config)
    else:
        measure.write("fusion_memory", config, all_steps(config))


if __name__ == "__main__":
    main(bench, Config, __doc__)
