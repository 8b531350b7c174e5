"""Adapters after attention and feed-forward sub-layers, before dropout and residual (Houlsby et al. 2019)."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pewe.deltas.base import Delta, equal_counts, layer_name, normal
from pewe.deltas.config import DeltaConfig
from pewe.packing import Layout, by_member


class AdapterSite(nn.Module):
    """x + f(x A) B with A (K, d, r) and B (K, r, d)."""

    def __init__(self, adapter_A: nn.Parameter, adapter_B: nn.Parameter, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.adapter_A, self.adapter_B, self.activation = adapter_A, adapter_B, activation

    def down(self, x: Tensor, counts: list[int]) -> Tensor:
        """f(x A) of a line whose members have `counts` tokens, (N, d) -> (N, r)."""
        return self.activation(by_member(x, self.adapter_A, counts))

    def adapt(self, x: Tensor, counts: list[int]) -> Tensor:
        """x + f(x A) B, (N, d) -> (N, d)."""
        return by_member(self.down(x, counts), self.adapter_B, counts, base=x)

    def post_forward(self, output: Tensor | tuple) -> Tensor | tuple:
        """Called by opendelta on the output of the stock sub-layer; attention returns (hidden, position bias, ...)."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        counts = equal_counts(hidden, len(self.adapter_A))
        adapted = self.adapt(hidden.reshape(-1, hidden.shape[-1]), counts).view(hidden.shape)
        return (adapted, *rest) if isinstance(output, tuple) else adapted


class HoulsbyAdapter(Delta):
    """After every self-attention, cross-attention and feed-forward: 2 per encoder block, 3 per decoder block; swish."""

    sites = ("SelfAttention", "EncDecAttention", "DenseReluDense")
    activation = staticmethod(nn.functional.silu)

    def expected_tensors(self, config: PretrainedConfig) -> int:
        return 2 * (2 * config.num_layers + 3 * config.num_decoder_layers)

    def update_module(self, module: nn.Module, key: str) -> None:
        _, _, sublayer = self.find_module(module, key)
        d, r = module.config.d_model, self.delta_config.adapter_size
        name = f"{layer_name(key)}.adapter"
        site = AdapterSite(
            self.new_parameter(f"{name}.adapter_A", (d, r), normal(0.02)),
            self.new_parameter(f"{name}.adapter_B", (r, d), normal(0.02)),
            self.activation,
        )
        self.delta_modules.append(site)
        self.at[key] = site
        self.insert_sequential_module(sublayer, delta_module=site, delta_name="adapter")

    def held(self, side: str) -> int:
        sites = [site for name, site in self.at.items() if name.startswith(side)]
        return sum(A.shape[1] + 2 * A.shape[2] for A in (site.adapter_A for site in sites))

    def after(self, name: str, hidden: Tensor, layout: Layout) -> Tensor:
        return self.at[name].adapt(hidden, layout.counts) if name in self.at else hidden


class PfeifferAdapter(HoulsbyAdapter):
    """After the feed-forward only, ReLU (Pfeiffer et al. 2021): one per block."""

    sites = ("DenseReluDense",)
    activation = staticmethod(nn.functional.relu)

    def expected_tensors(self, config: PretrainedConfig) -> int:
        return 2 * (config.num_layers + config.num_decoder_layers)


TYPES = {"houlsby": HoulsbyAdapter, "pfeiffer": PfeifferAdapter}


def adapter(model: PreTrainedModel, config: DeltaConfig, stack: int) -> Delta:
    """A stack of adapters of the configuration's type."""
    return TYPES[config.adapter_type](model, config, stack)
