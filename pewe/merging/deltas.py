"""Fisher and RegMean for deltas over one frozen T5: what is merged are linear maps y = x M that are seen from outside.

    LoRA      M = A B (d, h) of every query and value projection: the product, since factors mean nothing one by one
    adapter   A (d, r) and B (r, d), which assumes units that correspond, as after a shared init
    prefix    of each layer and head, values V (P, d_kv), applied to the attention over the prefix, and keys K^T (d_kv, P),
              applied to the queries: what the prefix network makes, not its parameters

The frozen weights are the same in all models: for W_i = W0 + s M_i, RegMean gives W* = W0 + s M*. The merged maps become
a delta again: of LoRA and prefix the best approximation of the wanted rank, by a singular value decomposition.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from pewe.cli import log
from pewe.errors import UserError
from pewe.flags import check, flag
from pewe.merging.rules import RULES
from pewe.merging.rules.fisher import FisherFlags
from pewe.merging.rules.matrices import lora_names, lora_ranks
from pewe.merging.rules.regmean import RegMeanFlags, metric
from pewe.merging.statistics import GRAM, Statistics, check_finite
from pewe.state import DeltaState

Maps = dict[str, Tensor]  # name -> (d_in, d_out)
EXACT = -1  # as a rank: the smallest that holds the merged map exactly


@dataclass(frozen=True)
class DeltaMergeConfig(RegMeanFlags, FisherFlags):
    """How the maps of deltas are merged."""

    rank: int = flag(0, "rank of a merged LoRA or prefix: 0 as the sources, -1 exact (load it with this rank)", low=-1)


def source_maps(kind: str, states: Sequence[DeltaState], shapes: dict) -> Iterator[tuple[str, list[Tensor]]]:
    """Each map's name and the map of every source; a LoRA's products are made one projection at a time.

    `shapes` of a prefix is {stack: (layers, 2, heads, P, d_kv)} (`Statistics.info`).
    """
    if kind == "lora":
        for name in lora_names(states[0]):
            yield name, [state[f"{name}.lora_A"].double() @ state[f"{name}.lora_B"].double() for state in states]
        return
    sources = list(states) if kind == "adapter" else [prefix_maps(state, shapes) for state in states]
    for name in sources[0]:
        yield name, [source[name] for source in sources]


def prefix_maps(state: DeltaState, shapes: dict) -> Maps:
    """K^T (d_kv, P) and V (P, d_kv) of every layer and head, float64."""
    maps = {}
    for stack, shape in shapes.items():
        for layer, (keys, values) in enumerate(prefix_rows(state, stack).view(*shape)):
            for head in range(len(keys)):
                maps[prefix_name(stack, layer, head, "keys")] = keys[head].mT
                maps[prefix_name(stack, layer, head, "values")] = values[head]
    return maps


def prefix_name(stack: str, layer: int, head: int, what: str) -> str:
    """`encoder.3.head.0.keys`: the name of a prefix's map."""
    return f"{stack}.{layer}.head.{head}.{what}"


def prefix_rows(state: DeltaState, stack: str) -> Tensor:
    """tanh(prefix W0^T) W2^T, (P, width) float64: the keys and values of all layers, before they are re-read by `view`."""
    names = ("prefix", "prefix_project.0.weight", "prefix_project.2.weight")
    prefix, down, up = (state[f"{stack}.prefix.{name}"].double() for name in names)
    return torch.tanh(prefix @ down.mT) @ up.mT


def truncated(matrix: Tensor, rank: int, metric: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
    """A (d, rank) and B (rank, h) with A B nearest to the matrix (d, h), and the relative error of A B.

    Near in the mean square of outputs x (M - A B) over inputs with the Gram `metric` = L L^T (d, d): the decomposition of
    L^T M, then times L^-T; without a metric in the Frobenius norm. A and B share the singular values.
    """
    factor = None if metric is None else torch.linalg.cholesky(metric)
    seen = matrix if factor is None else factor.mT @ matrix
    U, S, V = torch.linalg.svd(seen, full_matrices=False)
    error = S[rank:].norm() / S.norm().clamp(min=1e-300)
    missing = max(0, rank - len(S))
    root = pad(S[:rank].sqrt(), (0, missing))
    A, B = pad(U[:, :rank], (0, missing)) * root, root[:, None] * pad(V[:rank], (0, 0, 0, missing))
    if factor is not None:
        A = torch.linalg.solve_triangular(factor.mT, A, upper=True)
    return A, B, error.item()


def lora_state(name: str, M: Tensor, rank: int, source_rank: int, metric: Tensor | None) -> tuple[DeltaState, float]:
    """A and B of one projection; the scale alpha / r of another rank than the sources' is made up for in A and B."""
    A, B, error = truncated(M * (rank / source_rank), rank, metric)
    return {f"{name}.lora_A": A, f"{name}.lora_B": B}, error


def prefix_state(stack: str, maps: Maps, shape: Sequence[int], d_model: int, rank: int) -> tuple[DeltaState, float]:
    """A prefix network of this rank whose keys and values are nearest to the maps: prefix (P, d_model), W0, W2.

    The rows that the network makes are cut to H U, |H| <= 1/2: prefix = atanh(H) Q, W0 = Q and W2 = U^T, where Q
    (rank, d_model) has orthonormal rows (fixed seed).
    """
    layers, _, heads, length, _ = shape

    def of_layer(layer: int, what: str) -> Tensor:
        return torch.stack([maps[prefix_name(stack, layer, head, what)] for head in range(heads)])

    rows = [torch.stack([of_layer(layer, "keys").mT, of_layer(layer, "values")]) for layer in range(layers)]
    H, U, error = truncated(torch.stack(rows).reshape(length, -1), rank)
    scale = 2 * H.abs().max().clamp(min=1e-12)
    noise = torch.randn(d_model, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Q = torch.linalg.qr(noise)[0].mT
    return {
        f"{stack}.prefix.prefix": torch.atanh(H / scale) @ Q,
        f"{stack}.prefix.prefix_project.0.weight": Q,
        f"{stack}.prefix.prefix_project.2.weight": (U * scale).mT,
    }, error


def merge_deltas(
    kind: str,
    method: str,
    states: Sequence[DeltaState],
    statistics: Sequence[Statistics],
    W: Tensor,
    config: DeltaMergeConfig,
) -> list[DeltaState]:
    """One merged state per row of the weights (T, n), in the dtype of the sources; weight 0 leaves a source out.

    Maps and statistics are taken one map at a time, of all sources. Raises UserError for statistics that are missing or do
    not fit, and where a Gram is singular in spite of the ridge.
    """
    check(config)
    shapes, W = statistics[0].info["shapes"], W.double()
    for number, one in enumerate(statistics):
        if one.info["shapes"] != shapes:
            raise UserError(
                f"statistics of source {number} are of {kind} networks of other shapes than those of source 0"
            )
    rank, source_rank = ranks(kind, method, states[0], int((W != 0).sum(1).max()), config.rank)
    merged, errors = [{} for _ in W], [0.0]
    rule = RULES[method]
    for name, maps in source_maps(kind, states, shapes):
        named = [{name: M} for M in maps]
        targets = rule.apply(named, W, config, statistics)[name]
        by_inputs = kind == "lora" and rule.statistics == GRAM
        metrics = metric(named, W, config, statistics, name) if by_inputs else [None] * len(W)
        for state, M, own in zip(merged, targets, metrics, strict=True):
            made, error = lora_state(name, M, rank, source_rank, own) if kind == "lora" else ({name: M}, 0.0)
            state.update(made)
            errors.append(error)
    if kind == "prefix":
        for state in merged:
            for stack, shape in shapes.items():
                made, error = prefix_state(stack, state, shape, states[0][f"{stack}.prefix.prefix"].shape[1], rank)
                state.update(made)
                errors.append(error)
    log.info("merged %s: relative error of its rank (%d) at most %.2g", kind, rank, max(errors))
    merged = [{name: state[name].to(tensor.dtype) for name, tensor in states[0].items()} for state in merged]
    for target, state in enumerate(merged):
        for name, tensor in state.items():
            check_finite(name, tensor, f"the {method} merge for target {target}")
    return merged


def ranks(kind: str, method: str, state: DeltaState, used: int, wanted: int) -> tuple[int, int]:
    """The rank of the result and that of the sources (0 of an adapter). Raises UserError for a rank that cannot be."""
    if kind == "adapter":
        if wanted:
            raise UserError("--rank is for lora and prefix; an adapter keeps its bottleneck")
        return 0, 0
    if kind == "lora":
        source, full = lora_ranks(state, lora_names(state))
        exact = min(used * source, full) if RULES[method].statistics == GRAM else full
    else:
        prefixes = [tensor for name, tensor in state.items() if name.endswith("prefix.prefix")]
        source = next(tensor for name, tensor in state.items() if name.endswith("project.0.weight")).shape[0]
        exact, full = max(map(len, prefixes)), min(tensor.shape[1] for tensor in prefixes)
    rank = {0: source, EXACT: exact}.get(wanted, wanted)
    if not 0 < rank <= full:
        raise UserError(f"--rank {wanted}: a merged {kind} of rank {rank} is not possible, expected 1 to {full}")
    return rank, source
