"""T5's attention and activation in fused kernels of torch: equal up to rounding, faster.

Scoring uses both, tuning the activation alone (its nine operations in one). Attention is for forwards without generation.
"""

import types

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5Attention


def fuse(model: nn.Module) -> None:
    """Use the fused kernels from now on; before deltas are attached, which wrap the modules' forward."""
    fuse_activation(model)
    for module in model.modules():
        if isinstance(module, T5Attention):
            module.forward = types.MethodType(attention, module)


def fuse_activation(model: nn.Module) -> None:
    """The GELU of a gated T5 in one kernel; its ReLU is one already."""
    for module in model.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = nn.GELU(approximate="tanh")


KEYS = 16  # torch's kernel on a CPU handles the keys beyond a multiple of its vectors one by one: -inf fills them up


def attention(module: T5Attention, hidden_states: Tensor, mask=None, key_value_states=None, position_bias=None,
              past_key_values=None, query_length=None, cache_position=None, **unused) -> tuple[Tensor, Tensor]:  # fmt: skip
    """T5Attention.forward without a cache, (B, L, d): softmax(q k^T + position_bias + mask) v; also returns the bias with the mask.

    `past_key_values`, where given, is that of a prefix: its `update` puts the prefix in front of keys and values.
    """
    batch, length = hidden_states.shape[:2]
    other = hidden_states if key_value_states is None else key_value_states

    def heads(projection: nn.Module, states: Tensor) -> Tensor:
        return projection(states).view(batch, -1, module.n_heads, module.key_value_proj_dim).transpose(1, 2)

    queries, keys, values = heads(module.q, hidden_states), heads(module.k, other), heads(module.v, other)
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, module.layer_idx)
    if position_bias is None:
        positions = keys.shape[-2]
        position_bias = queries.new_zeros((1, module.n_heads, length, positions))
        if module.has_relative_attention_bias:
            reach = query_length or cache_position[-1] + 1
            position_bias = module.compute_bias(reach, positions, queries.device, cache_position)[:, :, -length:]
        if mask is not None:
            position_bias = position_bias + mask[..., :positions]
        position_bias = nn.functional.pad(position_bias, (0, -positions % KEYS), value=-torch.inf)
    if missing := position_bias.shape[-1] - keys.shape[-2]:
        keys, values = (nn.functional.pad(states, (0, 0, 0, missing)) for states in (keys, values))
    dropout = module.dropout if module.training else 0.0
    mixed = nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=position_bias, dropout_p=dropout, scale=1.0
    )
    return module.o(mixed.transpose(1, 2).reshape(batch, length, -1)), position_bias
