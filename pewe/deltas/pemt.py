"""PEMT: a mixture of source experts for one target (Lin et al., Findings of ACL 2024), on stock T5 v1.0 and v1.1.

Stage 1 (`PemtSource`) tunes one expert per source task on every feed-forward output projection, and a prompt. Stage 2
(`Pemt`) freezes the experts and prompts of E sources and tunes, for a target, the gates that mix them, an adapter behind
each mixture, a prompt that attends to those of the sources, and the layer norms. The length of a prompt depends on its
task, and the experts on the target, so that both hold one delta: K = 1.

Symbols: B sequences, S tokens, L positions of the prompt, N positions of all sequences, d = d_model, r the rank, E experts.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pewe.deltas.base import Initialiser, kaiming_uniform, layer_name, normal, zeros
from pewe.deltas.checkpoint import delta_identity, read_checkpoint, task_checkpoint
from pewe.deltas.config import DeltaConfig
from pewe.deltas.pemt_sites import PROMPT, ContextSite, ExpertSite, MixtureSite, Pass, PromptSite, TunedNorm
from pewe.deltas.pemt_task import PemtDelta, expert_names
from pewe.errors import UserError
from pewe.identity import state_digest
from pewe.packing import Layout
from pewe.state import DeltaState, check_state


class PemtSource(PemtDelta):
    """Stage 1: an expert on every feed-forward output projection of both stacks, and the prompt of the source task.

    The prompt starts as the embeddings of the task's description. In the original they are rows of a fresh N(0, 1)
    table, a row per distinct token: `as_original`.
    """

    sites = ("encoder", "decoder", "DenseReluDense.wo")

    def __init__(self, model: PreTrainedModel, config: DeltaConfig, stack: int):
        if stack != 1:
            raise UserError(
                f"--tune_method {config.tune_method}: the prompt's length depends on the task: --stack must be 1"
            )
        super().__init__(model, config, stack)

    def load(self, states: Sequence[DeltaState]) -> None:
        if len(states) != 1:
            raise UserError(f"--tune_method {self.delta_config.tune_method} holds one delta, not {len(states)}")
        super().load(states)

    def prepare(self, config: PretrainedConfig) -> None:
        self.shared, self.description = Pass(), [config.eos_token_id]
        prompt = None
        if self.delta_config.pemt_prompt:
            prompt = self.new_parameter(PROMPT, (1, config.d_model), self._embedded_description)
        encoder = self.backbone_model.encoder
        self.prompt_site = PromptSite(encoder, prompt, self.delta_config.prompt_dropout, self.shared)

    def expected_tensors(self, config: PretrainedConfig) -> int:
        return 2 * (config.num_layers + config.num_decoder_layers) + self.delta_config.pemt_prompt

    def update_module(self, module: nn.Module, key: str) -> None:
        _, _, site = self.find_module(module, key)
        if key == "encoder":
            self.insert_sequential_module(site, delta_module=self.prompt_site, delta_name="prompt")
        elif key == "decoder":
            context = ContextSite(self.shared, self.delta_config.as_original)
            self.insert_sequential_module(site, delta_module=context, delta_name="context")
        else:
            self.add_to_projection(site, key)

    def add_to_projection(self, linear: nn.Linear, key: str) -> None:
        """The trained expert of one feed-forward."""
        r = self.delta_config.expert_rank
        site = ExpertSite(
            self.new_parameter(f"{key}.lora_A", (r, linear.in_features), kaiming_uniform),
            self.new_parameter(f"{key}.lora_B", (linear.out_features, r), kaiming_uniform),
        )
        self.delta_modules.append(site)
        self.at[key] = site
        self.insert_parallel_module(linear, delta_module=site, delta_name="expert")

    def project(self, name: str, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.at[name].project(x, y, layout) if name in self.at else y

    def prompt(self) -> Tensor | None:
        return self.prompt_site.value()

    def start(self, layout: Layout, prompt: int) -> None:
        self.shared.start(layout, prompt)

    def encoded(self, hidden: Tensor) -> None:
        self.shared.context = self.shared.read(hidden)

    def describe(self, ids: Sequence[int]) -> None:
        """The token ids of the task's description: the prompt gets their number and, in `initialise`, their embeddings."""
        self.description = list(ids)
        if PROMPT in self.named:
            self.resize(PROMPT, (len(ids), self.backbone_model.config.d_model))

    def _embedded_description(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        ids = torch.tensor(self.description)
        if self.delta_config.as_original:
            distinct, number = ids.unique(return_inverse=True)
            return torch.randn(len(distinct), shape[1], generator=generator)[number]
        return self.backbone_model.shared.weight.detach()[ids.to(self.backbone_model.device)].float().cpu()

    def resize(self, name: str, shape: Sequence[int]) -> None:
        """Give a parameter another shape (without the leading axis), filled with zeros."""
        parameter = self.named[name]
        self._set(parameter, parameter.new_zeros(1, *shape))


class Pemt(PemtSource):
    """Stage 2: gates, target adapters, target prompt and layer norms over frozen experts.

    `set_experts` must be called before the first forward. The flags pemt_gate, pemt_prompt and pemt_adapter take a part
    away: without gate every expert has the weight 1 / E.
    """

    sites = (*PemtSource.sites, "layer_norm", "final_layer_norm")
    _PARTS = ("down_sampler.weight", "down_sampler.bias", "up_sampler.weight", "up_sampler.bias")

    @property
    def counts_padding(self) -> bool:
        """The original's sparsity loss averages over padding."""
        return self.delta_config.as_original

    def expected_tensors(self, config: PretrainedConfig) -> int:
        flags, depth = self.delta_config, (config.num_layers, config.num_decoder_layers)
        norms = 2 * depth[0] + 3 * depth[1] + 2
        return norms + flags.pemt_prompt + (flags.pemt_gate + len(self._PARTS) * flags.pemt_adapter) * sum(depth)

    def update_module(self, module: nn.Module, key: str) -> None:
        if not key.endswith("layer_norm"):
            return super().update_module(module, key)
        parent, name, norm = self.find_module(module, key)
        pretrained = norm.weight.detach()
        weight = self.new_parameter(f"{key}.weight", pretrained.shape, lambda *_: pretrained.float().cpu().clone())
        site = TunedNorm(weight, norm.variance_epsilon)
        self.replace_module(parent, name, norm, site, delta_name="norm")

    def add_to_projection(self, linear: nn.Linear, key: str) -> None:
        """The gate, the mixture and the target adapter of one feed-forward."""
        site = MixtureSite(self._new_gate(key), self._new_adapter(key), self.shared, key.startswith("encoder"))
        self.at[key] = site
        self.delta_modules.append(site)
        self.insert_sequential_module(linear, delta_module=site, delta_name="mixture")

    def _new_gate(self, key: str) -> nn.Parameter | None:
        return self.new_parameter(f"{key}.w_gate", (1, 1), zeros) if self.delta_config.pemt_gate else None

    def _new_adapter(self, key: str) -> list[nn.Parameter]:
        if not self.delta_config.pemt_adapter:
            return []
        d = self.backbone_model.config.d_model
        r = self.delta_config.target_adapter_size or max(1, d // 16)
        shapes: list[tuple[tuple[int, ...], Initialiser]] = [
            ((r, d), normal(0.01)),
            ((r,), zeros),
            ((d, r), normal(0.01)),
            ((d,), zeros),
        ]
        return [
            self.new_parameter(f"{layer_name(layer_name(key))}.adapter.{part}", *shape)
            for part, shape in zip(self._PARTS, shapes, strict=True)
        ]

    def source_shapes(self, source: DeltaState) -> dict[str, torch.Size]:
        """Names and shapes that this state of stage 1 must have on this backbone, by its rank and the length of its prompt."""
        lengths = {name: len(tensor) if tensor.dim() else 0 for name, tensor in source.items()}
        rank = statistics.mode([length for name, length in lengths.items() if name.endswith("lora_A")] or [0])
        shapes = {}
        for key in self.at:
            linear = self.backbone_model.get_submodule(key)
            shapes |= {f"{key}.lora_A": (rank, linear.in_features), f"{key}.lora_B": (linear.out_features, rank)}
        if PROMPT in source or PROMPT in self.named:
            shapes[PROMPT] = (lengths.get(PROMPT, 0), self.backbone_model.config.d_model)
        return {name: torch.Size(shape) for name, shape in shapes.items()}

    def for_task(self, config: DeltaConfig, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Besides, the experts of the other tasks are read and frozen. Raises UserError where there are none."""
        super().for_task(config, task, tokenizer)
        states = {name: self.read_expert(config, name) for name in expert_names(config, task)}
        self.set_experts(states)
        self.built_on = {name: state_digest(state) for name, state in states.items()}

    def read_expert(self, config: DeltaConfig, name: str) -> DeltaState:
        """The delta of stage 1 of a source, checked against the backbone."""
        path = task_checkpoint(Path(config.expert_path), name)
        hint = "tune the sources first: bash scripts/pemt_stage1.sh"
        state = read_checkpoint(path, "pemt_source", None, hint, mapped=True, made_for=delta_identity(config))
        check_state(state, self.source_shapes(state), path)
        return state

    def set_experts(self, sources: Mapping[str, DeltaState]) -> None:
        """Freeze these states of stage 1, name -> state, in this order; the gates get a column for each.

        Raises UserError that names the source and the tensor where a state does not fit this backbone.
        """
        for key, site in self.at.items():
            linear = self.backbone_model.get_submodule(key)
            A, B = (torch.stack(_tensors(sources, f"{key}.{name}")).to(linear.weight) for name in ("lora_A", "lora_B"))
            if A.shape[2] != linear.in_features or B.shape[1:] != (linear.out_features, A.shape[1]):
                found = f"{tuple(A.shape[1:])} and {tuple(B.shape[1:])}"
                raise UserError(
                    f"experts {', '.join(sources)}: {key}.lora_A and lora_B have the shapes {found}, expected "
                    f"(r, {linear.in_features}) and ({linear.out_features}, r): another backbone?"
                )
            site.set_experts(A, B)
            if site.gate is not None:
                width = linear.in_features if site.in_encoder else linear.out_features
                self.resize(f"{key}.w_gate", (width, len(sources)))
        if PROMPT in self.named:
            self.prompt_site.sources = [prompt.to(self.named[PROMPT]) for prompt in _tensors(sources, PROMPT)]

    def gates(self) -> Tensor:
        """The gates of the last forward, (layers, B, E): encoder layers, then decoder layers."""
        return torch.stack([site.last[0].detach() for site in self.at.values()])

    def imbalances(self) -> Tensor:
        """The sparsity term of every layer at the last forward, (layers,)."""
        padding = self.delta_config.as_original
        return torch.stack([site.imbalance(padding) for site in self.at.values()])

    def extra_loss(self) -> Tensor | float:
        """--sparsity times the mean of `imbalances`; none with a single expert, as in the original."""
        several = next(iter(self.at.values())).experts > 1
        return self.delta_config.sparsity * self.imbalances().mean() if self.delta_config.sparsity and several else 0.0


def _tensors(sources: Mapping[str, DeltaState], name: str) -> list[Tensor]:
    """This tensor of every source. Raises UserError where one is missing, or (of an expert) of another shape."""
    for source, state in sources.items():
        if name not in state:
            raise UserError(
                f"source {source!r}: tensor {name} is missing; expected a checkpoint of --tune_method pemt_source"
            )
    tensors = [state[name] for state in sources.values()]
    first, rest = next(iter(sources)), list(sources)[1:]
    for source, tensor in zip(rest, tensors[1:], strict=True):
        if name != PROMPT and tensor.shape != tensors[0].shape:
            raise UserError(
                f"source {source!r}: tensor {name} has shape {tuple(tensor.shape)}, that of {first!r} has {tuple(tensors[0].shape)}"
            )
    return tensors
