"""The deltas of the sources, combined for every target by one of the rules (`rules.RULES`).

The weights W (T, n) come from a script of unit_model/. A rule takes the states as they are; as differences from their
common start (`--base`), to which the result is added again; or, with statistics, as linear maps (`deltas.py`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pewe.cli import log, parse
from pewe.deltas.checkpoint import Checkpoints, open_checkpoint
from pewe.deltas.sources import listed_sources
from pewe.errors import UserError
from pewe.flags import flag
from pewe.identity import digest, part, state_digest
from pewe.merging.average import merge
from pewe.merging.deltas import DeltaMergeConfig, merge_deltas
from pewe.merging.rules import RULES, Rule
from pewe.merging.statistics import Statistics, check_finite
from pewe.state import DeltaState, check_state

ZERO = "zero"  # as a base
COMMON, UNLIKE = "common", "unlike or unknown"  # what sources began with


@dataclass(frozen=True)
class CombineConfig:
    """How weighted sources become one state."""

    combine: str = flag("average", f"how the weighted sources are combined: {', '.join(RULES)}", choices=RULES)
    combine_flags: list[str] = flag([], "flags of that rule, NAME=VALUE, or NAME for a switch", unique=True)
    base: str = flag(
        "",
        "what differences are taken from, for rules that need it: the checkpoint that all sources began with, or zero",
        decides=False,
    )


def flags_of(config: CombineConfig):
    """The flags of the rule: those that the script has itself, else those of `--combine_flags`."""
    rule = RULES[config.combine]
    kind = DeltaMergeConfig if rule.statistics else rule.flags
    names = [field.name for field in dataclasses.fields(kind)]
    if not names or not all(hasattr(config, name) for name in names):
        return parse(kind, [f"--{item}" for item in config.combine_flags])
    if config.combine_flags:
        raise UserError(f"--combine_flags {config.combine_flags[0]}: this script has the flags of its rule itself")
    return part(config, kind)


class Combiner:
    """A rule, its flags, and the sources that it combines, with their statistics or their common base where it needs them."""

    def __init__(self, config, states: Checkpoints, names: Sequence[str], folder: str = ""):
        """`config` is an EnsembleConfig. `names` are the tasks of the sources, whose statistics lie in the folder.

        Raises UserError for a rule that has no meaning for this kind of delta, flags that it has not, and sources without
        the statistics or the base that it needs.
        """
        self.name, self.kind, self.states, self.names = config.combine, config.delta, states, names
        self.rule: Rule = RULES[config.combine]
        self.flags = flags_of(config)
        if self.rule.kinds and self.kind not in self.rule.kinds:
            raise UserError(f"--combine {self.name} is for {', '.join(self.rule.kinds)}, not --delta {self.kind}")
        if config.base and not self.rule.differences:
            raise UserError(f"--base {config.base}: --combine {self.name} takes no differences")
        self.base = common_base(config, states) if self.rule.differences else None
        self.statistics = statistics_of(config, folder, names, states) if self.rule.statistics else []

    def made_from(self) -> dict:
        """What decides the merge beside weights and sources: an entry of the record, empty for the weighted average."""
        if self.name == "average":
            return {}
        about: dict = {"rule": self.name, **dataclasses.asdict(self.flags)}
        if self.statistics:
            about["statistics"] = {
                name: digest(one.info) for name, one in zip(self.names, self.statistics, strict=True)
            }
        if self.base is not None:
            about["base"], about["inits"] = state_digest(self.base) if self.base else ZERO, starts_of(self.states)
        return {"combined": about}

    def merge(self, W: Tensor, columns: Sequence[int] | None = None) -> Iterable[DeltaState]:
        """One state per row of the weights (T, n) over the sources, or those of them that the columns name."""
        columns = range(len(self.states)) if columns is None else columns
        names = [self.names[number] for number in columns]
        states = self.states if len(columns) == len(self.states) else [self.states[number] for number in columns]
        if self.name == "average":
            return merge(states, W, names=names)
        if self.rule.statistics:
            return merge_deltas(self.kind, self.name, states, self.statistics, W, self.flags)
        return self._each(states, W.double(), names)

    def _each(self, states: Sequence[DeltaState], W: Tensor, names: Sequence[str]) -> Iterator[DeltaState]:
        """Target by target, of the sources whose weight is not 0."""
        for row in W:
            used = row.nonzero().flatten().tolist()
            sources = [states[number] for number in used]
            merged = self.rule.apply([less(state, self.base) for state in sources], row[used], self.flags)
            merged = plus(merged, self.base)
            for name, tensor in merged.items():
                where = f"--combine {self.name} of {', '.join(names[number] for number in used)}"
                check_finite(name, tensor.to(sources[0][name].dtype), where)
            yield {name: tensor.to(sources[0][name].dtype) for name, tensor in merged.items()}


def less(state: DeltaState, base: DeltaState | None) -> DeltaState:
    """tau = theta - theta_0, float64; the state itself without a base, or one of zeros."""
    return {name: tensor.double() - base[name].double() for name, tensor in state.items()} if base else state


def plus(tau: DeltaState, base: DeltaState | None) -> DeltaState:
    """theta = theta_0 + tau."""
    return {name: tensor.double() + base[name].double() for name, tensor in tau.items()} if base else tau


def common_base(config, states: Checkpoints) -> DeltaState:
    """The state that all sources began with, empty for zero.

    Raises UserError where `--base` is not given, or a source does not say that it began with this one.
    """
    if config.base == ZERO:
        if starts_of(states) != COMMON:
            log.info("--base zero: sources that began with %s deltas are taken as they are, not as differences", UNLIKE)
        return {}
    why = f"--combine {config.combine} takes differences from the start that all sources share"
    if not config.base:
        raise UserError(f"{why}: give its checkpoint as --base, or --base {ZERO} to take the sources as they are")
    base, _ = open_checkpoint(Path(config.base), config.delta, f"{why}, or --base {ZERO}")
    check_state(base, states.shapes, Path(config.base))
    wanted = state_digest(base)
    for path in states.paths:
        found = open_checkpoint(path, config.delta, mapped=True, verify=False)[1].get("init")
        if found != wanted:
            what = "began with another delta" if found else "does not say which delta it began with"
            raise UserError(f"{path} {what}; expected --base {config.base}, or give --base {ZERO}")
    return base


def starts_of(states: Checkpoints) -> str:
    """Whether all sources say that they began with one and the same delta: what differences of them mean depends on it."""
    starts = {
        open_checkpoint(path, states.tune_method, mapped=True, verify=False)[1].get("init") for path in states.paths
    }
    return COMMON if len(starts) == 1 and None not in starts else UNLIKE


def statistics_of(config, folder: str, names: Sequence[str], states: Sequence[DeltaState]) -> list[Statistics]:
    """The statistics of these deltas. Raises UserError where they are of others, or were not collected alike."""
    from pewe.merging.collect_deltas import DELTA, OF_ONE_DELTA, TASK, WATCHES, statistics_file  # loads model code
    from pewe.merging.store import check_alike, read_statistics

    if config.delta not in WATCHES:
        raise UserError(f"--delta {config.delta}: only {', '.join(WATCHES)} can be merged by {config.combine}")
    if not folder:
        raise UserError(f"--combine {config.combine} needs statistics, which only the untouched sources have")
    if listed_sources(folder):
        raise UserError(
            f"--combine {config.combine} needs statistics beside the sources: one folder of them, not a list"
        )
    command = (
        f"python -m pewe.merging.collect_deltas --tune_method {config.delta} --source_ckpt_path {folder} --full_train"
    )
    found = []
    for name, state in zip(names, states, strict=True):
        made_from = {DELTA: state_digest(state), TASK: name}
        found.append(read_statistics(statistics_file(Path(folder), name), made_from, command))
    check_alike(found, names, OF_ONE_DELTA)
    return found
