"""PEMT's modules on one frozen T5: prompt, context, experts, mixtures, tuned norms. Symbols as in pemt.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pewe.packing import Layout

PROMPT = "task_shared"  # the original's name of the prompt


@dataclass
class Pass:
    """What the sites of one forward share: where the tokens stand, and what a gate reads."""

    encoder: Layout | None = None  # of L + S positions a row
    decoder: Layout | None = None
    prompt: int = 0  # L
    mean: Tensor | None = None  # (B, N): the mean of the prompt's positions, without prompt of those of the input
    context: Tensor | None = None  # (B, d), what the gates of the decoder read: the same mean of the encoder's output

    def start(self, encoder: Layout, prompt: int) -> None:
        """A new forward."""
        self.encoder, self.prompt, self.mean = encoder, prompt, encoder.mean(prompt)

    def read(self, line: Tensor) -> Tensor:
        """(N, width) -> (B, width)."""
        return self.mean.to(line.dtype) @ line


def rectangle(attended: Tensor) -> Layout:
    """The layout of the stock model, whose padding stands in the line: (B, S), False on padding."""
    return Layout(
        torch.full_like(attended[:, 0], attended.shape[1], dtype=torch.long), [len(attended)], attended.bool()
    )


class PromptSite(nn.Module):
    """Puts P + sum_i dropout(softmax(P S_i^T)) S_i in front of the encoder's input; S_i (L_i, d) are the sources' prompts.

    The dropout acts on the rows of the attention, in training only.
    """

    def __init__(self, encoder: nn.Module, prompt: nn.Parameter | None, dropout: float, shared: Pass):
        super().__init__()
        self.encoder, self.shared = [encoder], shared  # in a list: a site does not own the module that it belongs to
        self.prompt, self.dropout = prompt, dropout
        self.sources: list[Tensor] = []

    def value(self) -> Tensor | None:
        """The prompt of this forward, (L, d)."""
        if self.prompt is None:
            return None
        own = value = self.prompt[0]
        for source in self.sources:
            attention = functional.dropout(torch.softmax(own @ source.mT, -1), self.dropout, self.training)
            value = value + attention @ source
        return value

    def pre_forward(self, *args: object, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        """Called by opendelta with the arguments of the stock encoder; input_ids (B, S) become embeddings (B, L + S, d)."""
        embeddings = self.encoder[0].embed_tokens(kwargs.pop("input_ids"))
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(embeddings[..., 0], dtype=torch.long) if mask is None else mask
        length = 0
        if (prompt := self.value()) is not None:
            length = len(prompt)
            prompt = prompt.to(embeddings.dtype).expand(len(embeddings), -1, -1)
            embeddings, mask = torch.cat([prompt, embeddings], 1), widened(mask, length)
        self.shared.start(rectangle(mask), length)
        return args, {**kwargs, "inputs_embeds": embeddings, "attention_mask": mask}


class ContextSite(nn.Module):
    """Tells the stock decoder of the prompt's positions, and its gates what they read: the mean of the final encoder output.

    The original gives the decoder no mask of its own padding, which matters only where padding counts: `padding`.
    """

    def __init__(self, shared: Pass, padding: bool):
        super().__init__()
        self.shared, self.padding = shared, padding

    def pre_forward(self, *args: object, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        """Called by opendelta with the arguments of the stock decoder; encoder_hidden_states (B, L + S, d)."""
        if kwargs.get("encoder_attention_mask") is not None:
            kwargs["encoder_attention_mask"] = widened(kwargs["encoder_attention_mask"], self.shared.prompt)
        self.shared.context = self.shared.read(kwargs["encoder_hidden_states"].flatten(0, 1))
        mask, ids = kwargs.get("attention_mask"), kwargs["input_ids"]
        if self.padding:
            mask = kwargs["attention_mask"] = None
        known = mask is not None and mask.shape == ids.shape  # in generation with a cache it is of all tokens so far
        self.shared.decoder = rectangle(mask if known else torch.ones_like(ids))
        return args, kwargs


def widened(mask: Tensor, prompt: int) -> Tensor:
    """(B, S) -> (B, L + S), ones in front."""
    return torch.cat([mask.new_ones(len(mask), prompt), mask], 1)


class ExpertSite(nn.Module):
    """W a + B A a; A (1, r, d_ff), B (1, d, r). The scale alpha / r is 1."""

    def __init__(self, lora_A: nn.Parameter, lora_B: nn.Parameter):
        super().__init__()
        self.lora_A, self.lora_B = lora_A, lora_B

    def forward(self, hidden: Tensor) -> Tensor:
        """Added by opendelta to the output of the stock projection, (..., d_ff) -> (..., d)."""
        A, B = (parameter[0].to(hidden.dtype) for parameter in (self.lora_A, self.lora_B))
        return functional.linear(functional.linear(hidden, A), B)

    def project(self, inputs: Tensor, output: Tensor, layout: Layout) -> Tensor:
        """Lines a (N, d_ff) and W a (N, d) -> (N, d)."""
        return output + self(inputs)


class MixtureSite(nn.Module):
    """h' = h + U gelu(D h + b1) + b2 with h = W a + sum_i g_i B_i A_i a and g = softmax(u W_g).

    u (B, d_ff in the encoder, d in the decoder) is what the gate reads, g (B, E) serves all positions of a sequence; gelu
    is the tanh form. The E experts are one product: A (E r, d_ff), B (d, E r).
    """

    def __init__(self, gate: nn.Parameter | None, adapter: Sequence[nn.Parameter], shared: Pass, in_encoder: bool):
        super().__init__()
        self.gate, self.adapter = gate, nn.ParameterList(adapter)
        self.shared, self.in_encoder = shared, in_encoder
        self.last: tuple[Tensor, Tensor, Tensor, Layout] | None = None  # g, A a (N, E, r), h' of the last forward

    def set_experts(self, A: Tensor, B: Tensor) -> None:
        """A (E, r, d_ff) and B (E, d, r) of the sources, frozen.

        They are kept as R A and Q with B = Q R: the product is the same, and since the columns of Q are orthonormal,
        an expert's output Q z has the length of z, of which `imbalance` makes use. r becomes at most d.
        """
        Q, R = torch.linalg.qr(B.float())
        A = (R @ A.float()).to(A.dtype)
        self.experts, self.rank = A.shape[:2]
        self.A, self.B = A.flatten(0, 1), Q.to(B.dtype).transpose(0, 1).flatten(1)

    def pre_forward(self, hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
        """Called by opendelta with a (B, S, d_ff)."""
        self.inputs = hidden
        return (hidden,), {}

    def post_forward(self, output: Tensor) -> Tensor:
        """Called by opendelta with W a (B, S, d) of the stock projection; returns h'."""
        inputs, self.inputs = self.inputs, None
        layout = self.shared.encoder if self.in_encoder else self.shared.decoder
        return self.project(inputs.flatten(0, 1), output.flatten(0, 1), layout).view(output.shape)

    def project(self, inputs: Tensor, output: Tensor, layout: Layout) -> Tensor:
        """Lines a (N, d_ff) and W a (N, d) -> h' (N, d)."""
        codes = functional.linear(inputs, self.A).unflatten(-1, (self.experts, self.rank))
        gates = self._gates(inputs)
        mixed = codes * gates[layout.row, :, None].to(codes.dtype)
        hidden = output + functional.linear(mixed.flatten(1), self.B)
        if len(self.adapter):
            down, down_bias, up, up_bias = (parameter[0].to(hidden.dtype) for parameter in self.adapter)
            inner = functional.gelu(functional.linear(hidden, down, down_bias), approximate="tanh")
            hidden = hidden + functional.linear(inner, up, up_bias)
        self.last = gates, codes, hidden, layout
        return hidden

    def _gates(self, inputs: Tensor) -> Tensor:
        """g, (B, E)."""
        if self.gate is None:
            rows = len(self.shared.encoder.lengths)
            return inputs.new_full((rows, self.experts), 1 / self.experts, dtype=torch.float32)
        read = self.shared.read(inputs) if self.in_encoder else self.shared.context
        return torch.softmax(read.float() @ self.gate[0], -1)

    def imbalance(self, padding: bool) -> Tensor:
        """sum_i mean_b(g_i) (1 - mean_n cos(h'_n, e_in)) of the last forward, e_i = B_i A_i a; a scalar.

        n runs over all positions that are not padding, the prompt's among them; with `padding`, over all.
        With orthonormal B_i, cos(h', e_i) = (A_i a)^T (B_i^T h') / |A_i a| / |h'|: no e_i (N, d) is ever made.
        """
        gates, codes, hidden, layout = self.last
        codes, hidden = codes.float(), hidden.float()
        products = (functional.linear(hidden, self.B.mT.float()).view(codes.shape) * codes).sum(-1)
        norms = hidden.norm(dim=-1, keepdim=True).clamp_min(1e-8) * codes.norm(dim=-1).clamp_min(1e-8)
        weights = (layout.inside if padding else layout.attended)[layout.inside].to(codes.dtype)
        return (gates.mean(0) * (1 - weights @ (products / norms) / weights.sum())).sum()


class TunedNorm(nn.Module):
    """T5's layer norm, w x / sqrt(mean(x^2) + eps), with a weight (1, d) in fp32 whatever the dtype of the backbone."""

    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, d)."""
        x = hidden.float()
        return (self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))).to(hidden.dtype)
