"""T5 (Raffel et al. 2020) on the weights of a transformers model, over real tokens only, for a stack of deltas.

All real tokens of all members' rows stand in one line (N, d), see `pewe/packing.py`. A delta is asked at its places:
`project` after a linear layer, `after` a sub-layer, `prefix` for keys and values in front of self-attention's, `prompt` for
positions in front of the encoder's input. Only label tokens reach the decoder and the head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from pewe.attention import relative_bias, seen, softmax, softmax_total
from pewe.batches import IGNORED, Batch
from pewe.dropout import NoDropout, OneStream
from pewe.meter import count
from pewe.no_delta import NoDelta
from pewe.packing import Layout, linears, norm, to_line, to_rectangle

ACTIVATIONS = {"gelu_new": partial(functional.gelu, approximate="tanh"), "relu": functional.relu}
KeysValues = tuple[Tensor, Tensor]  # (R * heads, L, d_kv) each
Watch = Callable[[str, Tensor], None]  # name, tensor: see `T5.__init__`


@dataclass
class Packed:
    """Rows of K members in lines: input ids (N,), and label ids (M,) with what the decoder reads before each (M,).

    `scored` are the tokens of the labels' line that have a loss; all, unless padding stands in the line.
    """

    ids: Tensor
    encoder: Layout
    labels: Tensor
    shifted: Tensor
    decoder: Layout
    scored: Tensor


def pack(model: T5ForConditionalGeneration, batch: Batch, stack: int, padding: bool = False) -> Packed:
    """The real tokens of a padded batch, whose rows [k*B, (k+1)*B) are member k's; rows without labels are left out.

    Real tokens come before padding in every row. `padding` keeps it in the lines, where a delta counts it
    (`--as_original`): as a key it is masked, except in the decoder, where it comes last.
    """
    counted = batch.labels != IGNORED
    chosen = counted.any(1)
    rows = chosen.view(stack, -1).sum(1).tolist()
    ids, attended, labels = batch.input_ids[chosen], batch.attention_mask[chosen].bool(), batch.labels[chosen]
    counted = counted[chosen]
    shifted = labels.roll(1, 1).masked_fill(counted.logical_not().roll(1, 1), model.config.pad_token_id)
    shifted[:, 0] = model.config.decoder_start_token_id
    device = model.shared.weight.device
    inside, answered = (torch.ones_like(mask) if padding else mask for mask in (attended, counted))
    layouts = [
        Layout(inside.sum(1).to(device), rows, attended.to(device) if padding else None),
        Layout(answered.sum(1).to(device), rows),
    ]
    lines = [
        t.to(device) for t in (ids[inside], labels[answered], shifted[answered], counted[answered].nonzero()[:, 0])
    ]
    return Packed(lines[0], layouts[0], lines[1], lines[2], layouts[1], lines[3])


class T5:
    """One forward of a backbone with a delta on it."""

    def __init__(self, delta: NoDelta, dropout: NoDropout | None = None, watch: Watch | None = None):
        """`dropout` is the streams of the members; by default torch's own in train mode, none in eval mode.

        `watch` is told, by the names of the model's modules, of the input of every linear layer that a delta can change
        (N, d_in), of the output of every sub-layer before the delta and of every block (N, d), of `NAME.queries` (N, h);
        and of a prefix's `NAME.prefix`, the weights of its positions (N, heads, P), `encoder.0.keys`, `encoder.0.values`.
        """
        self.model, self.delta = delta.backbone_model, delta
        config = self.model.config
        self.heads, self.eps = config.num_heads, config.layer_norm_epsilon
        self.activation = (
            ACTIVATIONS.get(config.dense_act_fn) or self.model.encoder.block[0].layer[-1].DenseReluDense.act
        )
        rate = config.dropout_rate if self.model.training else 0.0
        self.dropout = (dropout or OneStream(rate)) if rate else NoDropout()
        self.watched, self.watch = watch is not None, watch or (lambda name, tensor: None)

    def states(self, packed: Packed) -> Tensor:
        """What the head reads at every label token, (M, d)."""
        return self.answers(*self.encode(packed.ids, packed.encoder), packed.shifted, packed.decoder)

    def answers(self, encoded: Tensor, encoder: Layout, shifted: Tensor, decoder: Layout) -> Tensor:
        """The same on what the encoder gave, (N, d), for the tokens before each label token, (M,)."""

        def memory(name: str, attention: nn.Module) -> KeysValues:
            return self.keys_values(name, attention, encoded, encoder)

        return self.decode(shifted, decoder, memory, encoder)

    def encode(self, ids: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """(N,) -> (N, d), and its layout; both longer by the prompt of each row where the delta has one."""
        stack = self.model.encoder
        count(lines=len(layout.lengths))
        hidden = functional.embedding(ids, stack.embed_tokens.weight)
        if (prompt := self.delta.prompt()) is not None:
            hidden, layout = with_prompt(hidden, layout, prompt)
        self.delta.start(layout, 0 if prompt is None else len(prompt))
        side = Side(self, "encoder", stack, layout)
        hidden = self.dropout(hidden, layout)
        for number, block in enumerate(stack.block):
            hidden = side.self_attention(number, block.layer[0], hidden)
            hidden = side.feed_forward(number, 1, block.layer[1], hidden)
            self.watch(f"encoder.block.{number}", hidden)
        hidden = self.dropout(self.norm(stack.final_layer_norm, hidden), layout)
        self.delta.encoded(hidden)
        return hidden, layout

    def decode(
        self,
        ids: Tensor,
        layout: Layout,
        memory: Callable[[str, nn.Module], KeysValues],
        encoder: Layout,
        cache: "Cache | None" = None,
    ) -> Tensor:
        """(M,) -> (M, d). `memory` gives the keys and values of the encoder's output for each cross-attention."""
        stack = self.model.decoder
        side = Side(self, "decoder", stack, layout, cache)
        hidden = self.dropout(functional.embedding(ids, stack.embed_tokens.weight), layout)
        across = seen(hidden.new_zeros(1, 1, 1), encoder.attended, self.heads, layout.width)
        for number, block in enumerate(stack.block):
            hidden = side.self_attention(number, block.layer[0], hidden)
            hidden = side.cross_attention(number, block.layer[1], hidden, memory, across, encoder)
            hidden = side.feed_forward(number, 2, block.layer[2], hidden)
            self.watch(f"decoder.block.{number}", hidden)
        hidden = self.dropout(self.norm(stack.final_layer_norm, hidden), layout)
        return hidden * self.model.model_dim**-0.5 if self.model.config.tie_word_embeddings else hidden

    def norm(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The pre-norm of a sub-layer."""
        return norm(hidden, layer.weight, self.eps)

    def project(self, x: Tensor, layout: Layout, **layers: nn.Linear) -> list[Tensor]:
        """x W^T of each layer, name -> module, with what the delta makes of it."""
        for name in layers:
            self.watch(name, x)
        outputs = linears(x, *layers.values())
        return [self.delta.project(name, x, y, layout) for name, y in zip(layers, outputs, strict=True)]

    def keys_values(self, name: str, attention: nn.Module, states: Tensor, layout: Layout) -> KeysValues:
        """Keys and values of a line of states as attention reads them."""
        made = self.project(states, layout, **{f"{name}.k": attention.k, f"{name}.v": attention.v})
        return tuple(to_rectangle(line, self.heads, layout) for line in made)


class Side:
    """Encoder or decoder on one layout: its position bias, and what a prefix needs."""

    def __init__(self, t5: T5, name: str, stack: nn.Module, layout: Layout, cache: "Cache | None" = None):
        self.t5, self.name, self.layout, self.cache = t5, name, layout, cache
        self.prefixes = cache.prefixes if cache else [t5.delta.prefix(name, layer) for layer in range(len(stack.block))]
        length = self.prefixes[0][0].shape[2] if self.prefixes[0] is not None else 0  # P
        done, device = cache.length if cache else 0, layout.lengths.device
        self.queries = torch.arange(done, done + layout.width, device=device)
        self.keys = torch.arange(-length, done + layout.width, device=device)
        self.attended = layout.attended if cache is None else layout.attended.new_ones(len(layout.lengths), done + 1)
        self.causal, self.length = name == "decoder" and cache is None, length
        if length:
            for layer, made in enumerate(self.prefixes):
                for what, tensor in zip(("keys", "values"), made, strict=True):
                    t5.watch(f"{name}.{layer}.{what}", tensor)
            self.members = Layout(torch.tensor(layout.counts, device=device), [1] * len(layout.counts))
        self.shared = self.biases(stack.block[0].layer[0].SelfAttention)

    def biases(self, attention: nn.Module) -> tuple[Tensor, Tensor | None]:
        """The bias of tokens and of a prefix by distance: of a T5 that of the first layer, of an umT5 each layer's own."""
        if not attention.has_relative_attention_bias:
            return self.shared
        t5, length = self.t5, self.length
        bias = relative_bias(
            t5.model.config, attention.relative_attention_bias.weight, self.queries, self.keys, self.name
        )
        of_tokens = seen(bias[:, :, length:], self.attended, t5.heads, self.layout.width, self.causal)
        if not length:
            return of_tokens, None
        of_token = bias[:, :, :length].transpose(0, 1).flatten(1)[self.layout.position]  # (N, heads * P)
        return of_tokens, to_rectangle(of_token, t5.heads, self.members)

    def sublayer(self, name: str, layer: nn.Module, hidden: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """x + dropout(delta(f(norm(x))))."""
        out = function(self.t5.norm(layer.layer_norm, hidden))
        self.t5.watch(name, out)
        return self.t5.dropout.add(hidden, self.t5.delta.after(name, out, self.layout), self.layout)

    def self_attention(self, number: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Every token of a row looks at the row (in the decoder at those before it), and at the prefix."""
        name, attention = f"{self.name}.block.{number}.layer.0.SelfAttention", layer.SelfAttention
        layout, heads = self.layout, self.t5.heads
        bias, prefix_bias = self.shared if number == 0 else self.biases(attention)

        def function(x: Tensor) -> Tensor:
            layers = {f"{name}.q": attention.q, f"{name}.k": attention.k, f"{name}.v": attention.v}
            q, k, v = self.t5.project(x, layout, **layers)
            self.t5.watch(f"{name}.queries", q)
            keys, values = to_rectangle(k, heads, layout), to_rectangle(v, heads, layout)
            if self.cache:
                keys, values = self.cache.grow(number, keys, values)
            prefixed = self.prefixes[number] is not None
            mixed, total = self.attend(q, keys, values, bias, layout, prefixed)
            if prefixed:
                mixed = self.with_prefix(f"{name}.prefix", q, mixed, total, prefix_bias, *self.prefixes[number])
            (out,) = self.t5.project(mixed, layout, **{f"{name}.o": attention.o})
            return out

        return self.sublayer(name, layer, hidden, function)

    def cross_attention(
        self, number: int, layer: nn.Module, hidden: Tensor, memory, bias: Tensor, encoder: Layout
    ) -> Tensor:
        """Every token of an answer looks at its input."""
        name, attention = f"{self.name}.block.{number}.layer.1.EncDecAttention", layer.EncDecAttention

        def function(x: Tensor) -> Tensor:
            (q,) = self.t5.project(x, self.layout, **{f"{name}.q": attention.q})
            mixed, _ = self.attend(q, *memory(name, attention), bias, encoder, False)
            (out,) = self.t5.project(mixed, self.layout, **{f"{name}.o": attention.o})
            return out

        return self.sublayer(name, layer, hidden, function)

    def feed_forward(self, number: int, place: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        """act(x W_0) * (x W_1), or act(x W), then W_o."""
        name, dense = f"{self.name}.block.{number}.layer.{place}.DenseReluDense", layer.DenseReluDense

        def function(x: Tensor) -> Tensor:
            inner = [part for part in ("wi", "wi_0", "wi_1") if hasattr(dense, part)]
            gate, *rest = self.t5.project(x, self.layout, **{f"{name}.{part}": getattr(dense, part) for part in inner})
            gate = self.t5.activation(gate)
            gate = self.t5.dropout(gate * rest[0] if rest else gate, self.layout)
            (out,) = self.t5.project(gate, self.layout, **{f"{name}.wo": dense.wo})
            return out

        return self.sublayer(name, layer, hidden, function)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, of: Layout, prefixed: bool
    ) -> tuple[Tensor, Tensor | None]:
        """softmax(q k^T + bias) v of the line q (N, h), T5's without 1 / sqrt(d_kv); and for a prefix log sum exp, (N, heads)."""
        heads, dropout = self.t5.heads, self.t5.dropout
        scores = torch.baddbmm(bias, to_rectangle(q, heads, self.layout), keys.mT)
        weights, total = softmax_total(scores) if prefixed else (softmax(scores), None)
        mixed = to_line(torch.bmm(dropout.weights(weights, self.layout, of), values), heads, self.layout)
        return mixed, to_line(total, heads, self.layout) if prefixed else None

    def with_prefix(
        self, name: str, q: Tensor, mixed: Tensor, total: Tensor, bias: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Attention over prefix and tokens from that over the tokens, (N, h), by the share of the prefix in the sum of exp.

        A member's prefix (heads, P, d_kv) serves all its tokens in one product: no row has a copy of it.
        """
        heads, members = self.t5.heads, self.members
        keys, values = (one.flatten(0, 1).to(q.dtype) for one in (keys, values))
        scores = torch.baddbmm(bias, to_rectangle(q, heads, members), keys.mT)
        weights, total_of_prefix = softmax_total(scores)
        own = to_line(torch.bmm(self.t5.dropout.weights(weights, members, None), values), heads, members)
        own_total = to_line(total_of_prefix, heads, members)
        share = torch.sigmoid(own_total - total).to(q.dtype)  # (N, heads)
        if self.t5.watched:
            self.t5.watch(name, to_line(weights, heads, members).unflatten(1, (heads, -1)) * share[..., None])
        by_head = (line.unflatten(1, (heads, -1)) for line in (mixed, own))
        return torch.lerp(*by_head, share[..., None]).flatten(1)


@dataclass
class Cache:
    """Generation's memory of one decoder: self-attention's keys and values so far, (R * heads, T, d_kv) a layer, and prefixes."""

    layers: list[KeysValues]
    prefixes: list[KeysValues | None]
    length: int = 0

    def grow(self, number: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Add the step's token; the keys and values of all tokens so far."""
        for stored, new in zip(self.layers[number], (keys, values), strict=True):
            stored[:, self.length] = new[:, 0]
        return tuple(stored[:, : self.length + 1] for stored in self.layers[number])


def with_prompt(hidden: Tensor, layout: Layout, prompt: Tensor) -> tuple[Tensor, Layout]:
    """The line with the prompt (P, d) in front of every row, and its layout."""
    length = len(prompt)
    attended = functional.pad(layout.attended, (length, 0), value=True)
    longer = Layout(layout.lengths + length, layout.rows, None if layout.attended is layout.inside else attended)
    order, own = longer.position.clone(), longer.position >= length
    order[own] = torch.arange(len(hidden), device=hidden.device) + length
    return torch.cat([prompt.to(hidden.dtype), hidden]).index_select(0, order), longer
