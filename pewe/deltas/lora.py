"""LoRA (Hu et al. 2022): on the query and value projections of every attention, as in the original code, or other layers."""

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pewe.deltas.base import Delta, equal_counts, kaiming_uniform, zeros
from pewe.deltas.config import DeltaConfig
from pewe.errors import UserError
from pewe.packing import Layout, by_member

ATTENTIONS, FEED_FORWARD = ("SelfAttention", "EncDecAttention"), ("DenseReluDense",)
OF_ATTENTION = ("q", "k", "v", "o")


class LoraSite(nn.Module):
    """y + (alpha / r) x A B with y = x W; A (K, d, r), B (K, r, h)."""

    def __init__(self, lora_A: nn.Parameter, lora_B: nn.Parameter, scale: float):
        super().__init__()
        self.lora_A, self.lora_B, self.scale = lora_A, lora_B, scale

    def project(self, x: Tensor, counts: list[int], y: Tensor | None = None) -> Tensor:
        """Lines (N, d), (N, h) -> (N, h), the members having `counts` tokens; without y the second term alone."""
        return by_member(by_member(x, self.lora_A, counts), self.lora_B, counts, base=y, scale=self.scale)

    def forward(self, hidden: Tensor) -> Tensor:
        """Added by opendelta to the output of the stock projection, (K*B, S, d) -> (K*B, S, h)."""
        counts = equal_counts(hidden, len(self.lora_A))
        return self.project(hidden.reshape(-1, hidden.shape[-1]), counts).view(*hidden.shape[:-1], -1)


class Lora(Delta):
    """A is kaiming uniform on the (d, r) tensor, that is U(+-1/sqrt(r)); B starts at zero."""

    def __init__(self, model: PreTrainedModel, config: DeltaConfig, stack: int):
        layers = [(target, ATTENTIONS if target in OF_ATTENTION else FEED_FORWARD) for target in config.lora_targets]
        self.sites = tuple(f"{name}.{target}" for target, names in layers for name in names)
        super().__init__(model, config, stack)

    def prepare(self, config: PretrainedConfig) -> None:
        lacking = ("wi",) if config.is_gated_act else ("wi_0", "wi_1")
        if wrong := [target for target in self.delta_config.lora_targets if target in lacking]:
            raise UserError(f"--lora_targets {wrong[0]}: this T5 has no such layer (v1.0 has wi; v1.1 wi_0, wi_1)")

    def expected_tensors(self, config: PretrainedConfig) -> int:
        sublayers = {True: config.num_layers + 2 * config.num_decoder_layers}
        sublayers[False] = config.num_layers + config.num_decoder_layers
        return 2 * sum(sublayers[target in OF_ATTENTION] for target in self.delta_config.lora_targets)

    def update_module(self, module: nn.Module, key: str) -> None:
        _, _, linear = self.find_module(module, key)
        r = self.delta_config.lora_r
        site = LoraSite(
            self.new_parameter(f"{key}.lora_A", (linear.in_features, r), kaiming_uniform),
            self.new_parameter(f"{key}.lora_B", (r, linear.out_features), zeros),
            self.delta_config.lora_alpha / r,
        )
        self.delta_modules.append(site)
        self.at[key] = site
        self.insert_parallel_module(linear, delta_module=site, delta_name="lora")

    def held(self, side: str) -> int:
        of_input = (
            "EncDecAttention.k",
            "EncDecAttention.v",
        )  # cross-attention's keys and values are of the input's tokens
        reads_input = {name: name.startswith("encoder") or name.endswith(of_input) for name in self.at}
        sites = [site for name, site in self.at.items() if reads_input[name] == (side == "encoder")]
        return sum(site.lora_A.shape[2] for site in sites)

    def project(self, name: str, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.at[name].project(x, layout.counts, y) if name in self.at else y
