"""Prefix tuning (Li and Liang 2021) on every self-attention of both stacks, as in the original code.

One network per stack turns P prefix vectors into keys and values for all of its layers, in front of the tokens' own. The
stock model's attention reads them through a view of the key/value cache; mask and relative positions move by P.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig

from pewe.deltas.base import Delta, kaiming_uniform, normal


class PrefixNetwork(nn.Module):
    """tanh(prefix W0^T) W2^T -> (K, L, 2, heads, P, d_kv).

    The original reads the (P, 2 L h) result with `.view(L, 2, heads, P, d_kv)`: the memory is re-read in another order,
    so layer l sees only about P/L of the prefix rows. That is reproduced.
    """

    def __init__(self, prefix: nn.Parameter, down: nn.Parameter, up: nn.Parameter, shape: tuple[int, ...]):
        super().__init__()
        self.prefix, self.down, self.up, self.shape = prefix, down, up, shape

    def forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each (K, heads, P, d_kv). Only the rows that this layer reads are computed."""
        _, two, heads, length, d_kv = self.shape
        width, size = self.up.shape[1], two * heads * length * d_kv
        first, last = layer * size // width, -(-(layer + 1) * size // width)
        rows = torch.bmm(torch.tanh(torch.bmm(self.prefix[:, first:last], self.down.mT)), self.up.mT)
        start = layer * size - first * width
        keys_values = rows.flatten(1)[:, start : start + size].unflatten(1, (two, heads, length, d_kv))
        return keys_values[:, 0], keys_values[:, 1]


class PrefixedCache:
    """A self-attention cache seen through a prefix: `update` returns [prefix, cached, new] keys and values."""

    is_compileable = False

    def __init__(self, cache: Cache | None, keys: Tensor, values: Tensor):
        self.cache, self.keys, self.values = cache, keys, values

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (K*B, heads, P + tokens so far, d_kv); only the tokens are stored in the real cache."""
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, layer, *args, **kwargs)
        prefix = self.keys.to(keys.dtype), self.values.to(values.dtype)
        return torch.cat([prefix[0], keys], dim=-2), torch.cat([prefix[1], values], dim=-2)

    def get_seq_length(self, layer: int = 0) -> int:
        """P + tokens so far: where transformers 5 takes the position of the first new token from."""
        return self.keys.shape[-2] + (0 if self.cache is None else self.cache.get_seq_length(layer))


class PrefixSite(nn.Module):
    """Wraps one self-attention: gives it the prefixed cache, P more key positions and positions moved by P."""

    def __init__(self, network: PrefixNetwork, layer: int, causal: bool):
        super().__init__()
        self.network = [network]  # in a list: the network is registered once, not per site
        self.layer, self.causal = layer, causal

    def pre_forward(self, hidden: Tensor, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        """Called by opendelta with the arguments of T5Attention.forward; hidden (K*B, S, d)."""
        keys, values = self.network[0](self.layer)
        per_member, length = hidden.shape[0] // keys.shape[0], keys.shape[-2]
        name = "cache" if "cache" in kwargs else "past_key_values"  # as transformers 5 and 4 call it
        cache = kwargs.get(name)
        cache = getattr(cache, "self_attention_cache", cache)
        kwargs[name] = PrefixedCache(
            cache, keys.repeat_interleave(per_member, 0), values.repeat_interleave(per_member, 0)
        )
        mask = kwargs.get("mask")
        if (
            mask is None and self.causal
        ):  # transformers 5 leaves it to torch, for which the prefix would be the first tokens
            past = kwargs[name].get_seq_length(self.layer) - length
            mask = hidden.new_ones((1, 1, hidden.shape[1], past + hidden.shape[1]), dtype=torch.bool).tril(past)
        if mask is not None:  # every query sees the prefix: an additive mask is 0 there, one of booleans true
            seen = mask.new_full((*mask.shape[:-1], length), mask.dtype == torch.bool)
            kwargs["mask"] = torch.cat([seen, mask], dim=-1)
        if kwargs.get("cache_position") is not None:  # of transformers 4
            kwargs["cache_position"] = kwargs["cache_position"] + length
        return (hidden,), kwargs

    def post_forward(self, output: tuple) -> tuple:
        """The output of T5Attention needs no change."""
        return output


class Prefix(Delta):
    """One network for the encoder, one for the decoder; none on cross-attention."""

    sites = ("SelfAttention",)

    def expected_tensors(self, config: PretrainedConfig) -> int:
        return 2 * 3

    def prepare(self, config: PretrainedConfig) -> None:
        P, r, d, heads = self.delta_config.prefix_num, self.delta_config.prefix_r, config.d_model, config.num_heads
        self.networks = nn.ModuleDict()
        for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            width = 2 * layers * heads * config.d_kv
            self.networks[stack] = PrefixNetwork(
                self.new_parameter(f"{stack}.prefix.prefix", (P, d), normal(0.02)),
                self.new_parameter(f"{stack}.prefix.prefix_project.0.weight", (r, d), kaiming_uniform),
                self.new_parameter(f"{stack}.prefix.prefix_project.2.weight", (width, r), kaiming_uniform),
                (layers, 2, heads, P, config.d_kv),
            )

    def update_module(self, module: nn.Module, key: str) -> None:
        _, _, attention = self.find_module(module, key)
        stack, _, layer, *_ = key.split(".")
        site = PrefixSite(self.networks[stack], int(layer), stack == "decoder")
        self.delta_modules.append(site)
        self.insert_sequential_module(attention, delta_module=site, delta_name="prefix")

    def held(self, side: str) -> int:
        layers, _, heads, length, d_kv = self.networks[side].shape
        of_weights = 2.25 if self.backbone_model.config.dropout_rate else 1  # with dropout's, and its mask
        return layers * heads * round(length * of_weights + 3 * d_kv)

    def prefix(self, side: str, layer: int) -> tuple[Tensor, Tensor]:
        return self.networks[side](layer)
