"""The projections of a T5 that a LoRA can be on: their names, how many there are, and how wide."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from pewe.deltas.flags import LORA_TARGETS
from pewe.errors import UserError
from pewe.identity import model_folder
from pewe.model_files import json_object

SITE = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.\d\.(SelfAttention|EncDecAttention|DenseReluDense)\.(\w+)")
SIZES = ("d_model", "num_heads", "d_kv", "d_ff", "num_layers")
UNKNOWN: Mapping[str, int] = MappingProxyType({})  # sizes of a backbone that is not here
Width = tuple[int, int]  # features in and out


def sizes_of(model: str | None, sure: bool = False) -> Mapping[str, int]:
    """The sizes in the `config.json` of a T5's folder, or of a hub id in the cache; empty where none of this name is here.

    Where one is `sure` that it is this one, raises UserError for a folder that is no T5's.
    """
    folder = model_folder(model) if model else None
    if folder is None or not (folder / "config.json").is_file():
        return UNKNOWN
    about = json_object(folder / "config.json")
    sizes = {name: about.get(name) for name in SIZES}
    sizes["num_decoder_layers"] = about.get("num_decoder_layers") or sizes["num_layers"]
    wrong = [name for name, size in sizes.items() if type(size) is not int or size < 1]
    if wrong and sure:
        raise UserError(f"{folder / 'config.json'}: {wrong[0]} is {sizes[wrong[0]]!r}, not a number as a T5 has it")
    return UNKNOWN if wrong else sizes


def targets_of(names: Mapping[str, object]) -> list[str]:
    """The targets that these projections, or tensors of a state, are of, in the order of `LORA_TARGETS`."""
    found = {match[4] for name in names if (match := SITE.match(name))}
    return [target for target in LORA_TARGETS if target in found]


def absent(sites: Mapping[str, object], sizes: Mapping[str, int] = UNKNOWN) -> Iterator[str]:
    """The projections of the same targets that are not among these, in all blocks of the backbone.

    Where its sizes are not known, in the blocks up to the last that has any.
    """
    for target in targets_of(sites):
        for side in ("encoder", "decoder"):
            yield from (site for site in _all(side, _blocks(side, sites, sizes), target) if site not in sites)


def check_complete(sites: Mapping[str, object], path: Path, sizes: Mapping[str, int] = UNKNOWN) -> None:
    """Raises UserError that names the first projection without LoRA, of a block or attention where others have it."""
    if site := next(absent(sites, sizes), ""):
        targets = ", ".join(targets_of(sites))
        raise UserError(
            f"{path} has no LoRA on {site}; a delta needs each target ({targets}) in every block of both stacks"
        )


def check_widths(widths: Mapping[str, Width], path: Path, sizes: Mapping[str, int] = UNKNOWN) -> None:
    """Raises UserError that names the first projection which the backbone, or where it is not here any T5, has not so wide."""
    known = _widths(sizes) if sizes else {}
    for site, width in widths.items():
        side, block, _, target = SITE.fullmatch(site).groups()
        if site not in _all(side, int(block) + 1, target):
            raise UserError(f"{path} has LoRA on {site}, which no T5 has")
        if sizes and int(block) >= (blocks := _blocks(side, widths, sizes)):
            raise UserError(f"{path} has LoRA on {site}, but the {side} of its backbone has {blocks} blocks")
        wanted = known.setdefault(target, width)
        if width != wanted:
            whose = "as config.json of its backbone says" if sizes else "as in the layer before it"
            raise UserError(
                f"{path}: the LoRA on {site} is from {width[0]} to {width[1]} features; expected {wanted}, {whose}"
            )


def _widths(sizes: Mapping[str, int]) -> dict[str, Width]:
    """Target -> width."""
    d, inner, ff = sizes["d_model"], sizes["num_heads"] * sizes["d_kv"], sizes["d_ff"]
    attention, wide = dict.fromkeys("qkv", (d, inner)), dict.fromkeys(("wi", "wi_0", "wi_1"), (d, ff))
    return {**attention, "o": (inner, d), **wide, "wo": (ff, d)}


def _blocks(side: str, sites: Mapping[str, object], sizes: Mapping[str, int]) -> int:
    """Blocks of a stack: the backbone's, or where it is not here those up to the last of these projections, at least one."""
    if sizes:
        return sizes["num_layers" if side == "encoder" else "num_decoder_layers"]
    return max((int(match[2]) + 1 for site in sites if (match := SITE.fullmatch(site)) and match[1] == side), default=1)


def _all(side: str, blocks: int, target: str) -> Iterator[str]:
    """The names of all projections of a target in a stack."""
    sublayers = ["SelfAttention", "EncDecAttention"][: 1 + (side == "decoder")]
    for number in range(blocks):
        if target in ("q", "k", "v", "o"):
            yield from (f"{side}.block.{number}.layer.{place}.{name}.{target}" for place, name in enumerate(sublayers))
        else:
            yield f"{side}.block.{number}.layer.{len(sublayers)}.DenseReluDense.{target}"
