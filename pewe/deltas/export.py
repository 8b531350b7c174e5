"""A delta of ours, tuned or merged, becomes a folder that another library loads, with a model card.

python -m pewe.deltas.export --to peft --checkpoint checkpoints/lora/Loss/without_boolq_checkpoint.pt --model T5 --out FOLDER
python -m pewe.deltas.export --to adapters --checkpoint checkpoints/adapter/Loss/without_boolq_checkpoint.pt --out FOLDER

LoRA goes to PEFT, adapters to the library `adapters`. Where the weights of an ensemble and the names of its sources are known,
the card has them as a table.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pewe.command import main

import safetensors.torch

from pewe.deltas.checkpoint import BACKBONE, MODEL, check_made_for, open_checkpoint
from pewe.deltas.flags import ADAPTER_TYPES
from pewe.deltas.peft_folder import CONFIG, PREFIX, WEIGHTS, check_names, widths_of
from pewe.deltas.projections import check_complete, check_widths, sizes_of, targets_of
from pewe.errors import UserError
from pewe.files import provenance, replacing
from pewe.flags import check, flag
from pewe.identity import model_digest
from pewe.model_files import json_object
from pewe.state import DeltaState, check_state

CARD, UNKNOWN = "README.md", "BACKBONE"


class Made(NamedTuple):
    """A delta in the format of another library."""

    files: Mapping[str, bytes]  # of the folder
    words: str  # what it is
    tag: str
    loading: tuple[str, ...]  # lines of Python


def as_peft(state: DeltaState, args: Mapping, path: Path, model: str) -> Made:
    """A LoRA as a folder of PEFT. Raises UserError where a projection has none that others have."""
    check_names(state, path)
    widths, sizes = widths_of(state, path), sizes_of(model, sure=True)
    check_widths(widths, path, sizes)
    check_complete(widths, path, sizes)
    r, alpha, targets = next(iter(state.values())).shape[1], args["lora_alpha"], targets_of(state)
    settings = peft_config(r, alpha, targets, None if model == UNKNOWN else model)
    files = {
        WEIGHTS[0]: safetensors.torch.save(peft_tensors(state), {"format": "pt"}),
        CONFIG: (json.dumps(settings, indent=2) + "\n").encode(),
    }
    loading = (
        "from peft import PeftModel",
        "from transformers import AutoModelForSeq2SeqLM",  # a T5, mT5 or umT5, as its config.json says
        "",
        f'model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained("{model}"), "THIS_FOLDER")',
    )
    return Made(files, f"LoRA of rank {r}, alpha {settings['lora_alpha']:g}, on {', '.join(targets)}", "lora", loading)


def as_adapters(state: DeltaState, args: Mapping, path: Path, model: str) -> Made:
    """Adapters as a folder of the library `adapters`. Raises UserError where a block lacks one."""
    from pewe.deltas.adapters_folder import (  # loads what attaches deltas, which --help does not
        adapter_files,
        check_sites,
    )

    about = Path(model) / "config.json"
    if about.is_file() and (kind := json_object(about).get("model_type")) != "t5":
        raise UserError(
            f"--model {model} is a {kind!r}; adapters are exported for a t5 only, whose numbers were verified"
        )
    check_sites(state, args["adapter_type"], path)
    r = next(iter(state.values())).shape[1]
    loading = (
        "import adapters",
        "from transformers import T5ForConditionalGeneration",
        "",
        f'model = T5ForConditionalGeneration.from_pretrained("{model}")',
        "adapters.init(model)",
        'model.load_adapter("THIS_FOLDER", set_active=True)',
    )
    words = f"Adapter ({args['adapter_type']}) of bottleneck {r}, in every block"
    return Made(
        adapter_files(state, args["adapter_type"], None if model == UNKNOWN else model), words, "adapter", loading
    )


class Format(NamedTuple):
    """A library: the kind of delta that it takes, the flag without which it is not known, and what makes the folder."""

    kind: str
    needs: str
    make: Callable[[DeltaState, Mapping, Path, str], Made]


FORMATS = {"peft": Format("lora", "lora_alpha", as_peft), "adapters": Format("adapter", "adapter_type", as_adapters)}


@dataclass(frozen=True)
class ExportConfig:
    """Write a delta as others read it."""

    to: str = flag("peft", "library: peft (LoRA), or adapters (houlsby and pfeiffer)", choices=FORMATS)
    checkpoint: str = flag("", "checkpoint, tuned (checkpoint-best.pt) or merged (without_<task>_checkpoint.pt)")
    out: str = flag("", "folder to write")
    model: str = flag("", "name of the backbone in the folder (default: as the checkpoint says)")
    tokenizer_path: str = flag("", "tokenizer of that backbone, where it is not the model's own")
    lora_alpha: float = flag(0.0, "alpha, where the checkpoint does not say it", low=0)
    adapter_type: str = flag("", "type of an adapter, where the checkpoint does not say it", choices=ADAPTER_TYPES)
    license: str = flag("", "licence of the module, for the card")


def export(config: ExportConfig) -> Path:
    """Write the folder. Raises UserError for a kind of delta that the library has not, and for another backbone."""
    check(config)
    if not config.checkpoint or not config.out:
        raise UserError("--checkpoint and --out are both needed")
    path, out, to = Path(config.checkpoint), Path(config.out), FORMATS[config.to]
    if out.resolve() in (path.resolve(), path.resolve().parent):
        raise UserError(f"--out {out} holds the --checkpoint, whose card or files would be lost; give another folder")
    state, args = open_checkpoint(path, to.kind)
    check_state(state, None, path)
    told = {to.needs: getattr(config, to.needs)} if getattr(config, to.needs) else {}
    if config.model and BACKBONE in args:
        told[BACKBONE] = model_digest(config.model, config.tokenizer_path)
    check_made_for(args, told, path)
    known = {**told, **args}
    if to.needs not in known:
        raise UserError(f"{path} does not say its {to.needs}; give --{to.needs}")
    model = config.model or args.get(MODEL) or UNKNOWN
    made = to.make(state, known, path, model)
    for name, content in {**made.files, CARD: card(config, args, made, model).encode()}.items():
        write(out / name, content)
    return out


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def peft_tensors(state: DeltaState) -> DeltaState:
    """A (d, r) and B (r, h) as PEFT's matrices (r, d) and (h, r), under its names."""
    return {f"{PREFIX}{name}.weight": tensor.mT.contiguous() for name, tensor in state.items()}


def peft_config(r: int, alpha: float, targets: list[str], model: str | None) -> dict:
    """`adapter_config.json` of a plain LoRA; PEFT's defaults hold for what it does not say."""
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": model,
        "r": r,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": targets,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def card(config: ExportConfig, args: Mapping, made: Made, model: str) -> str:
    """The model card: what this was merged or tuned from, and how to load it."""
    about = provenance()
    front = ["---", f"library_name: {config.to}", *([f"base_model: {model}"] if model != UNKNOWN else [])]
    front += [f"license: {config.license}"] * bool(config.license) + [f"tags: [{made.tag}, t5, pewe]", "---"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    shown = {name: value for name, value in args.items() if name not in ("sources", "weights")}
    return "\n".join(
        [
            *front,
            f"# {Path(config.checkpoint).stem}",
            "",
            f"{made.words} of `{model}`. Licence: {config.license or 'not stated'}.",
            "",
            *sources_table(args),
            "## How to load",
            "",
            "```python",
            *made.loading,
            "```",
            "",
            "## What it was made from",
            "",
            f"By pewe, {about['commit']}; {versions}.",
            "",
            "```json",
            json.dumps(shown, indent=1, sort_keys=True, default=str),
            "```",
            "",
        ]
    )


def sources_table(args: Mapping) -> list[str]:
    """The sources of an ensemble: name, weight, fingerprint of the tensors; no lines for what is no ensemble."""
    sources, weights = args.get("sources"), args.get("weights")
    if not isinstance(sources, dict) or not isinstance(weights, list) or len(sources) != len(weights):
        return []
    rows = [
        f"| {name} | {weight:.6g} | `{digest}` |"
        for (name, digest), weight in zip(sources.items(), weights, strict=True)
    ]
    return ["## Sources", "", "| source | weight | fingerprint |", "| --- | --- | --- |", *rows, ""]


def _run(config: ExportConfig) -> None:
    print(f"{export(config)}: a folder of {config.to}, with its card")


if __name__ == "__main__":
    main(_run, ExportConfig, __doc__)
