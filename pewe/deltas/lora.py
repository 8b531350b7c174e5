"""LoRA on the query and value projections of every attention (Hu et al. 2022), as in the original code."""

import torch
from torch import Tensor, nn

from pewe.deltas.base import Delta, by_member, kaiming_uniform, zeros


class LoraSite(nn.Module):
    """(alpha / r) x A B, added to x W by opendelta; A (K, d, r), B (K, r, h)."""

    def __init__(self, lora_A: nn.Parameter, lora_B: nn.Parameter, scale: float):
        super().__init__()
        self.lora_A, self.lora_B, self.scale = lora_A, lora_B, scale

    def forward(self, hidden: Tensor) -> Tensor:
        """(K*B, S, d) -> (K*B, S, h)."""
        x = by_member(hidden, self.lora_A.shape[0])
        up = torch.bmm(torch.bmm(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return (self.scale * up).reshape(*hidden.shape[:-1], -1)


class Lora(Delta):
    """A is kaiming uniform on the (d, r) tensor, that is U(+-1/sqrt(r)); B starts at zero."""

    sites = ("SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v")
    flags = ("lora_r", "lora_alpha")

    def expected_tensors(self, config) -> int:
        return 2 * 2 * (config.num_layers + 2 * config.num_decoder_layers)

    def update_module(self, module: nn.Module, key: str) -> None:
        _, _, linear = self.find_module(module, key)
        r = self.delta_config.lora_r
        site = LoraSite(
            self.new_parameter(f"{key}.lora_A", (linear.in_features, r), kaiming_uniform),
            self.new_parameter(f"{key}.lora_B", (r, linear.out_features), zeros),
            self.delta_config.lora_alpha / r,
        )
        self.delta_modules.append(site)
        self.insert_parallel_module(linear, delta_module=site, delta_name="lora")
