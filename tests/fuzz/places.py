"""The sound inputs of the world: tiny random backbones, a few lines of data, files of flags, models to merge.

INPUTS: name -> a function that writes the input into a path; the world makes each when it is first asked for.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.process import ROOT, kill, run, start, wait

TASKS = ("mini_read_towns", "mini_read_people", "mini_yesno_towns")
FIRST = TASKS[0]
MINI_BERT = ROOT / "checkpoints" / "mini_bert"
DOMAINS = ("market", "harbour", "garden")


def _t5(world, path: Path) -> None:
    from tests.conftest import write_tiny_backbone

    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1}
    write_tiny_backbone(path, **sizes)


def _bert(world, path: Path) -> None:
    import torch
    from transformers import AutoConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = AutoConfig.from_pretrained(MINI_BERT, max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(path)
    copy_tokenizer(MINI_BERT, path)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The files of an encoder's tokenizer."""
    for file in source.iterdir():
        if "token" in file.name or "vocab" in file.name:
            shutil.copy(file, folder)


def _data(world, path: Path) -> None:
    """Three tasks of the mini gym, and one for each metric that not every answer is defined for."""
    for task in TASKS:
        (path / task).mkdir(parents=True)
        for file in sorted((ROOT / "data" / "mini_gym" / task).glob("*.tsv")):
            _few_lines(file, path / task / file.name, 8 if "train" in file.name else 4)
    answers = {
        "pemt-stsb": ("1.5", "4.0", "2.25"),
        "pemt-superglue-multirc": ("True", "False"),
        "pemt-cola": ("unacceptable", "acceptable"),
    }
    for task, known in answers.items():
        (path / task).mkdir()
        for split, count in (("full_train", 8), ("64_42_train", 8), ("64_42_dev", 4), ("64_42_test", 4)):
            extra = "\tquestion {0}" if "multirc" in task and "train" not in split else ""
            lines = [f"{split} text {n}\t{known[n % len(known)]}{extra.format(n // 2)}" for n in range(count)]
            (path / task / f"{task}_{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _few_lines(source: Path, target: Path, count: int) -> None:
    lines = source.read_text(encoding="utf-8").splitlines()
    random.Random(source.name).shuffle(lines)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")


def _emotions(world, path: Path) -> None:
    for domain in DOMAINS:
        for split, count in (("train", 24), ("test", 12)):
            name = f"{domain}/{domain}_{split}.tsv"
            _few_lines(ROOT / "data" / "mini_emotions" / name, path / name, count)


def _tags(world, path: Path) -> None:
    """Sentences with the tags of entities."""
    for number, domain in enumerate(DOMAINS):
        (path / domain).mkdir(parents=True)
        for split in ("train", "test"):
            sentence = f"the\tO\nold\tB-PER\nman{number}\tI-PER\nsaw\tO\ngarden\tB-LOC\n"
            (path / domain / f"{domain}_{split}.txt").write_text("\n".join([sentence] * 6), encoding="utf-8")


def _raw(world, path: Path) -> None:
    """A data set's own files."""
    (path / "boolq").mkdir(parents=True)
    for split, count in (("train", 12), ("validation", 6)):
        rows = [f"is {split} {n} so\tpassage {n}\t{n % 2}" for n in range(count)]
        (path / "boolq" / f"{split}.tsv").write_text("\n".join(["question\tpassage\tanswer", *rows]) + "\n")


def _original(world, path: Path) -> None:
    import argparse

    import torch

    content = {
        "adapter": {"a": torch.ones(2), "b": torch.zeros(3)},
        "args": argparse.Namespace(seed=1),
        "current_state": {"num_updates": 3, "epoch": 1},
    }
    torch.save(content, path)


def suite_sections(world) -> dict:
    """The content of the suite."""
    return {
        "title": "t",
        "all": suite_flags(world),
        "tuning": dict(SUITE_TUNING),
        "targets": {"trace_test": [0]},
        "weights": {"effective": 1.5},
        "delta.adapter": {"adapter_size": 2},
    }


def _suite(world, path: Path) -> None:
    path.write_text(toml(suite_sections(world)))


def _other_suite(world, path: Path) -> None:
    sections = suite_sections(world)
    sections["tuning"]["train_iters"], sections["weights"]["effective"] = 3, 1.2
    path.write_text(toml(sections))


SUITE_TUNING = {"stack": 3, "bsz_list": [4], "learning_rate_list": [0.01], "train_iters": 2, "valid_interval": 1}


def suite_flags(world) -> dict:
    """The section [all] of the suite."""
    return {
        "model": str(world.place("t5")),
        "task_dir": str(world.place("data")),
        "tasks": list(TASKS),
        "device": "cpu",
        "max_input_length": 24,
        "max_output_length": 6,
    }


def fusion_flags(world) -> dict:
    """The flags of the fusion experiment."""
    return {
        "model": str(world.place("bert")),
        "data_dir": str(world.place("emotions")),
        "kind": "single",
        "domains": list(DOMAINS[:2]),
        "held_out": [DOMAINS[2]],
        "seeds": [1],
        "updates": 2,
        "batch_size": 4,
        "max_length": 32,
        "learning_rate": 0.01,
        "examples": 8,
        "alpha": 0.9,
        "ridge": 1e-6,
        "fisher": "hard",
        "protocols": ["pairwise"],
        "methods": ["individual", "simple", "fisher", "regmean", "soft_ensemble"],
    }


def toml(sections: dict) -> str:
    """Values, lists and sections of them as TOML; a value that is a `Raw` text stands as it is."""
    plain = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    lines = [f"{key} = {toml_value(value)}" for key, value in plain.items()]
    for name, flags in sections.items():
        if isinstance(flags, dict):
            lines += [f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in flags.items())]
    return "\n".join(lines) + "\n"


class Raw(str):
    """TOML text of a value."""


def toml_value(value) -> str:
    """One value as TOML."""
    if isinstance(value, Raw | bool):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _local(world, path: Path) -> None:
    """Two whole models with their tokenizers, data and statistics."""
    path.mkdir()
    zoo = world.place("fusion") / "zoo"
    for name, domain in zip("ab", DOMAINS, strict=False):
        folder = next(zoo.glob(f"{domain}-*"))
        shutil.copytree(folder, path / name)
        copy_tokenizer(world.place("bert"), path / name)
        shutil.copy(world.place("emotions") / domain / f"{domain}_train.tsv", path / f"{name}.tsv")
    for name in "ab":
        words = (
            f"-m pewe.merging.collect --model {path}/{name} --data {path}/{name}.tsv --output {path}/{name}.safetensors"
        )
        outcome = run([*words.split(), "--batch_size", "4"], path)
        if outcome.code != 0:
            raise RuntimeError(outcome.err)


def _stopped(world, path: Path) -> None:
    """What the command "long" leaves when it is killed after its second resume file."""
    root, seen = path.with_name(f"{path.name}_root"), set()
    shutil.rmtree(root, ignore_errors=True)
    words = world.ready("long", root, world.place)
    pid = start(words, root, root / "stdout", root / "stderr")
    while len(seen) < 2:
        if wait(pid, 0.001) is not None:
            raise RuntimeError((root / "stderr").read_text())
        seen |= {(found.stat().st_ino, found.stat().st_mtime_ns) for found in root.rglob("resume.pt")}
    kill(pid)
    for left in list(root.rglob(".*.tmp")):  # one that was being written
        shutil.rmtree(left)
    if not any(root.rglob("resume.pt")):  # it was faster
        return _stopped(world, path)
    (root / "out").rename(path)
    shutil.rmtree(root)


INPUTS: dict[str, Callable] = {
    "descriptions.tsv": lambda world, path: shutil.copy(ROOT / "data" / "task_descriptions.tsv", path),
    "t5": _t5,
    "bert": _bert,
    "data": _data,
    "emotions": _emotions,
    "tags": _tags,
    "raw": _raw,
    "original": _original,
    "suite.toml": _suite,
    "other_suite.toml": _other_suite,
    "fusion.toml": lambda world, path: path.write_text(toml(fusion_flags(world))),
    "local": _local,
    "stopped": _stopped,
}
