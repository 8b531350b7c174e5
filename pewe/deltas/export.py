"""A LoRA of ours, tuned or merged, becomes a folder that PEFT's `PeftModel.from_pretrained` loads, with a model card.

python -m pewe.deltas.export --to peft --checkpoint checkpoints/lora/Loss/without_boolq_checkpoint.pt --model T5 --out FOLDER

Where the weights of an ensemble and the names of its sources are known, the card has them as a table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pewe.command import main

import safetensors.torch

from pewe.deltas.checkpoint import BACKBONE, MODEL, check_made_for, open_checkpoint
from pewe.deltas.peft_folder import CONFIG, PREFIX, WEIGHTS, check_complete, targets_of
from pewe.errors import UserError
from pewe.files import provenance, replacing
from pewe.flags import check, flag
from pewe.identity import model_digest
from pewe.state import DeltaState, check_state

FORMATS = ("peft",)
CARD = "README.md"


@dataclass(frozen=True)
class ExportConfig:
    """Write a LoRA as others read it."""

    to: str = flag(
        "peft", "format; adapters and prefixes have none that was found to be the same function", choices=FORMATS
    )
    checkpoint: str = flag(
        "", "checkpoint of a LoRA, tuned (checkpoint-best.pt) or merged (without_<task>_checkpoint.pt)"
    )
    out: str = flag("", "folder to write")
    model: str = flag("", "name of the backbone in the folder (default: as the checkpoint says)")
    tokenizer_path: str = flag("", "tokenizer of that backbone, where it is not the model's own")
    lora_alpha: float = flag(0.0, "alpha, where the checkpoint does not say it", low=0)
    license: str = flag("", "licence of the module, for the card")


def export(config: ExportConfig) -> Path:
    """Write the folder. Raises UserError for what is no LoRA, and for a backbone that it was not made for."""
    check(config)
    if not config.checkpoint or not config.out:
        raise UserError("--checkpoint and --out are both needed")
    path, out = Path(config.checkpoint), Path(config.out)
    state, args = open_checkpoint(path, "lora")
    check_state(state, None, path)
    sites = {name.removesuffix(".lora_A"): None for name in state if name.endswith(".lora_A")}
    check_complete(sites, path)
    told: dict = {"lora_alpha": config.lora_alpha} if config.lora_alpha else {}
    if config.model and BACKBONE in args:
        told[BACKBONE] = model_digest(config.model, config.tokenizer_path)
    check_made_for(args, told, path)
    if "lora_alpha" not in {**told, **args}:
        raise UserError(f"{path} does not say its lora_alpha; give --lora_alpha")
    r, alpha = next(iter(state.values())).shape[1], {**told, **args}["lora_alpha"]
    settings = peft_config(r, alpha, targets_of(state), config.model or args.get(MODEL))
    write(out / WEIGHTS[0], safetensors.torch.save(peft_tensors(state), {"format": "pt"}))
    write(out / CONFIG, (json.dumps(settings, indent=2) + "\n").encode())
    write(out / CARD, card(config, args, settings).encode())
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


def card(config: ExportConfig, args: Mapping, settings: Mapping) -> str:
    """The model card: what this was merged or tuned from, and how to load it."""
    model, made = settings["base_model_name_or_path"] or "BACKBONE", provenance()
    front = ["---", "library_name: peft", *([f"base_model: {model}"] if model != "BACKBONE" else [])]
    front += [f"license: {config.license}"] * bool(config.license) + ["tags: [lora, t5, pewe]", "---"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    shown = {name: value for name, value in args.items() if name not in ("sources", "weights")}
    return "\n".join(
        [
            *front,
            f"# {Path(config.checkpoint).stem}",
            "",
            f"LoRA of rank {settings['r']}, alpha {settings['lora_alpha']:g}, on {', '.join(settings['target_modules'])} of "
            f"`{model}`. Licence: {config.license or 'not stated'}.",
            "",
            *sources_table(args),
            "## How to load",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import T5ForConditionalGeneration",
            "",
            f'model = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained("{model}"), "THIS_FOLDER")',
            "```",
            "",
            "## What it was made from",
            "",
            f"By pewe, {made['commit']}; {versions}.",
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
    print(f"{export(config)}: a LoRA of PEFT, with its card")


if __name__ == "__main__":
    main(_run, ExportConfig, __doc__)
