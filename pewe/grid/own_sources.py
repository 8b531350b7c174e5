"""Sources that were made elsewhere (--source_ckpt_path): they take the place of the step that tunes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from get_similarity import MEASURES
from pewe.deltas.checkpoint import BACKBONE, Checkpoints, check_made_for, delta_identity
from pewe.deltas.kinds import KINDS, SCORED
from pewe.deltas.projections import targets_of
from pewe.deltas.sources import first_files, listed_sources, source_digest, source_files, source_names
from pewe.errors import UserError
from pewe.grid.step import Step
from pewe.identity import digest
from pewe.inputs import check_files
from pewe.merging.rules import RULES
from unit_model import ENSEMBLES


@dataclass(frozen=True)
class Own:
    """Where they lie, name -> file or folder of PEFT; and whether they are of the tasks themselves, in one folder."""

    places: Mapping[str, Path]
    size: Mapping  # flags
    of_tasks: bool
    folder: str = ""  # of these

    @property
    def path(self) -> str:
        """The same as the flag of a command."""
        return self.folder or ",".join(f"{name}={place}" for name, place in self.places.items())


def own_sources(kind: str, given: str, asked: Sequence[str], tasks: Sequence[str], fetch: bool) -> Own:
    """What --source_ckpt_path and --source_tasks stand for, deltas of a kind. Raises UserError for a place that holds no delta.

    Without `fetch` nothing is downloaded.
    """
    if listed := listed_sources(given, fetch):
        places = source_files(given, asked or list(listed), fetch)
        return Own(places, size_of(kind, places), of_tasks=False)
    names = source_names(given, asked, tasks)
    places = source_files(given, names)
    return Own(places, size_of(kind, places), set(names) == set(tasks), given)


@dataclass(frozen=True)
class OwnSources(Step):
    """Nothing is carried out: what they made is their content."""

    places: Mapping[str, Path] = field(default_factory=dict)

    def content(self) -> str:
        """A fingerprint of every source, under its name."""
        return digest({name: source_digest(path) for name, path in self.places.items()})

    def stamp(self) -> dict:
        """No file is theirs."""
        return {"files": {}}

    def missing(self, serves: list[str] | None = None) -> str:
        """What of them is not there, or is not of the kind, size and backbone of the experiment."""
        try:
            check_sources(self.config, self.places)
        except UserError as error:
            return str(error)
        return ""

    def begin(self) -> dict:
        """Raises UserError: they are not made here."""
        raise UserError(self.missing())


def check_sources(config, places: Mapping[str, Path]) -> None:
    """Raises UserError for the first source that cannot serve; `config` is a TuneConfig."""
    known = made_for(config.tune_method, places)
    check_made_for(known, {BACKBONE: delta_identity(config)[BACKBONE]}, next(iter(places.values())))


def size_of(kind: str, places: Mapping[str, Path]) -> dict:
    """The flags of kind and size that a command needs for these sources, all alike; none where they cannot be read."""
    try:
        known = made_for(kind, places)
    except UserError:
        return {}
    return {name: known[name] for name in (*KINDS[kind].describing, TARGETS) if name in known}


def made_for(kind: str, places: Mapping[str, Path]) -> dict:
    """What sources say that they were made for, read once. Raises UserError for the first that is not like those before it."""
    if kind not in SCORED:
        raise UserError(f"--source_ckpt_path: sources are of {', '.join(SCORED)} deltas, not --delta {kind}")
    check_files(first_files(places), "sources", "--source_ckpt_path names them; the first run fetches those of a hub")
    key = digest([kind, [(path, source_digest(path)) for path in places.values()]])
    if key not in _known:
        states = Checkpoints(list(places.values()), kind)
        targets = targets_of(states[0])
        _known[key] = {**states.made_for, **({TARGETS: targets} if targets else {})}
    return _known[key]


TARGETS = "lora_targets"  # which tensors a LoRA has; no checkpoint says it
_known: dict[str, dict] = {}


def needs_tasks(init: str) -> bool:
    """Whether a row reads what only a source has that is a task in the data: its group, its lines, statistics of its lines."""
    ensemble = ENSEMBLES[init]
    measures = [ensemble.measure, *(ENSEMBLES[of].measure for kind, of in ensemble.needs if kind == "similarity")]
    return (
        "manual_division" in ensemble.flags
        or any(MEASURES[measure].matrix is not None for measure in measures if measure)
        or ("statistics", "") in ensemble.needs
        or bool(ensemble.sections)  # tuned on the lines themselves
        or bool(RULES[ensemble.flags.get("combine", "average")].statistics)
    )
