"""One run in a stack: its data, its folder, what it has reached."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from pewe import identity
from pewe.cli import log
from pewe.data import Encoded
from pewe.deltas.checkpoint import BEST, write_checkpoint
from pewe.meter import Work
from pewe.state import DeltaState


@dataclass
class Progress:
    """What a run has reached; stored in its resume file at every validation."""

    updates: int = 0
    best: float | None = None  # none yet; NaN where no score so far is defined
    best_updates: int = 0
    without_improvement: int = 0
    finished: bool = False
    seconds: float = 0.0
    lines: float = 0.0  # through the backbone, its share of the stack's
    history: list[dict] = field(default_factory=list)  # updates, train loss since the last one, dev
    trace: list[dict] = field(default_factory=list)  # point, updates, test, log_likelihood (--trace_test)

    def measured(self, spent: Work, sharing: int) -> dict[str, float]:
        """Seconds and lines until now, with this run's share of what so many have spent together since."""
        seconds, lines = self.seconds + spent.seconds / sharing, self.lines + spent.lines / sharing
        return {"seconds": round(seconds, 2), "lines": round(lines)}


@dataclass
class Member:
    """One run: a task's data, a learning rate, and the folder of its checkpoint and resume file.

    `settings` are all that decides its result; `args` go into its checkpoint.
    """

    task: str
    metric: str
    train: Encoded
    dev: Encoded
    batch_size: int
    learning_rate: float
    folder: Path
    init: DeltaState
    settings: dict
    args: dict
    progress: Progress = field(default_factory=Progress)
    resumes: bool = False  # goes on from its resume file
    saved: dict | None = None  # the content of that
    best: DeltaState | None = None
    failed: str = ""  # the cause
    test: Encoded | None = None  # --trace_test

    @property
    def resume_file(self) -> Path:
        """Current delta, optimiser statistics and progress at the last validation."""
        return self.folder / "resume.pt"


def write_best(member: Member) -> None:
    """Write the best state of a member as its `checkpoint-best.pt`."""
    updates = member.progress.best_updates
    epoch = updates * member.batch_size // len(member.train.inputs)
    write_checkpoint(member.folder / BEST, member.args["tune_method"], member.best, member.args, updates, epoch)


def read_resume(path: Path, settings: dict) -> dict | None:
    """The content of a resume file; None, with the reason in the log, where it is damaged or of other settings."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved = identity.unsealed(content)
        if saved is None:
            raise ValueError("checksum")
        if other := identity.difference(saved["settings"], settings):
            log.info("%s is not continued: %s", path, other)
            return None
        return {**saved, "progress": Progress(**saved["progress"], **saved[identity.PROVENANCE])}
    except Exception as error:  # a damaged file raises many kinds of errors in torch
        log.warning("%s is damaged, or of an earlier version (%s); the run starts again", path, type(error).__name__)
        return None
