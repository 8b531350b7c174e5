"""Adapters after attention and feed-forward sub-layers, before dropout and residual (Houlsby et al. 2019)."""

import torch
from torch import Tensor, nn

from pewe.deltas.base import Delta, by_member, layer_name, normal


class AdapterSite(nn.Module):
    """x + f(x A) B with A (K, d, r) and B (K, r, d)."""

    def __init__(self, adapter_A: nn.Parameter, adapter_B: nn.Parameter, activation):
        super().__init__()
        self.adapter_A, self.adapter_B, self.activation = adapter_A, adapter_B, activation

    def adapt(self, hidden: Tensor) -> Tensor:
        """(K*B, S, d) -> (K*B, S, d)."""
        x = by_member(hidden, self.adapter_A.shape[0])
        down = self.activation(torch.bmm(x, self.adapter_A.to(x.dtype)))
        return torch.baddbmm(x, down, self.adapter_B.to(x.dtype)).reshape(hidden.shape)

    def post_forward(self, output):
        """Called by opendelta on the output of the sub-layer; attention returns (hidden, position bias, ...)."""
        if isinstance(output, tuple):
            return (self.adapt(output[0]), *output[1:])
        return self.adapt(output)


class HoulsbyAdapter(Delta):
    """After every self-attention, cross-attention and feed-forward: 2 per encoder block, 3 per decoder block; swish."""

    sites = ("SelfAttention", "EncDecAttention", "DenseReluDense")
    flags = ("adapter_type", "adapter_size")
    activation = staticmethod(nn.functional.silu)

    def expected_tensors(self, config) -> int:
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
        self.insert_sequential_module(sublayer, delta_module=site, delta_name="adapter")


class PfeifferAdapter(HoulsbyAdapter):
    """After the feed-forward only, ReLU (Pfeiffer et al. 2021): one per block."""

    sites = ("DenseReluDense",)
    activation = staticmethod(nn.functional.relu)

    def expected_tensors(self, config) -> int:
        return 2 * (config.num_layers + config.num_decoder_layers)
