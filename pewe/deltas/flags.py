"""The flags of each kind of delta, one class each, which alone say what a run of that kind depends on."""

from dataclasses import dataclass

from pewe.flags import flag

WIDEST = 2**16  # of a bottleneck, rank or prefix: more than any T5's width
ADAPTER_TYPES = ("houlsby", "pfeiffer")
LORA_TARGETS = ("q", "v", "k", "o", "wi", "wi_0", "wi_1", "wo")  # the linear layers of a T5


@dataclass(frozen=True)
class NoFlags:
    """A kind without flags of its own."""


@dataclass(frozen=True)
class AdapterFlags:
    """Adapters."""

    adapter_type: str = flag(
        "houlsby", "houlsby (after every sub-layer) or pfeiffer (after the feed-forward only)", choices=ADAPTER_TYPES
    )
    adapter_size: int = flag(12, "bottleneck r of an adapter", low=1, high=WIDEST)


@dataclass(frozen=True)
class LoraFlags:
    """LoRA."""

    lora_r: int = flag(10, "rank of LoRA", low=1, high=WIDEST)
    lora_alpha: float = flag(16.0, "LoRA's scale is alpha / r", above=0)
    lora_targets: list[str] = flag(
        ["q", "v"],
        "LoRA's layers: q, k, v, o of every attention; wi (v1.0), wi_0, wi_1 (v1.1), wo of every feed-forward",
        decides=False,  # the names of its tensors, which every digest holds, say it
        choices=LORA_TARGETS,
        unique=True,
    )


@dataclass(frozen=True)
class PrefixFlags:
    """Prefix tuning."""

    prefix_num: int = flag(120, "number of prefix vectors P", low=1, high=WIDEST)
    prefix_r: int = flag(24, "bottleneck of the prefix network", low=1, high=WIDEST)


@dataclass(frozen=True)
class PemtFlags:
    """Both stages of PEMT."""

    expert_rank: int = flag(64, "PEMT, stage 1: rank of an expert", low=1, high=WIDEST)
    expert_path: str = flag(
        "checkpoints/pemt/stage1", "PEMT, stage 2: folder with <source>/checkpoint-best.pt", decides=False
    )
    experts: list[str] = flag(
        [],
        "PEMT, stage 2: names or lists of the sources, in order (default: all tasks but the target)",
        unique=True,
        name=True,
    )
    target_adapter_size: int = flag(
        0, "PEMT: bottleneck of the target adapter (0: d_model / 16, as the original)", low=0, high=WIDEST
    )
    sparsity: float = flag(0.1, "PEMT: coefficient of the sparsity loss; 0: without", low=0)
    prompt_dropout: float = flag(
        0.1, "PEMT: dropout of the target prompt's attention to the sources' prompts", low=0, high=1
    )
    pemt_gate: bool = flag(True, "PEMT: gates; without, every expert has the same weight")
    pemt_prompt: bool = flag(True, "PEMT: prompts; without, a gate reads the mean of the input's positions")
    pemt_adapter: bool = flag(True, "PEMT: target adapters")
    task_descriptions: str = flag("data/task_descriptions.tsv", "PEMT: file with task TAB sentence: the prompts' text")
