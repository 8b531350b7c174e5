"""Where a run reports its curves while it is tuned (--report_to): a by-product, without which the run goes on."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pewe.cli import log
from pewe.errors import UserError
from pewe.identity import digest
from pewe.tuning.config import NOWHERE


class Scalars:
    """Scalars in a folder for TensorBoard. Where they cannot be written (any more) a warning says so, once."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path, purge_step: int):
        self.folder, self.writer = folder, None
        self.writer = self._unless_it_fails(lambda: self._open(purge_step))

    def _open(self, purge_step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder), purge_step=purge_step)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        if self.writer is not None:
            self._unless_it_fails(lambda: self._add(name, value, step))

    def _add(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self._unless_it_fails(self._close)

    def _close(self) -> None:
        self.writer.close()

    def _unless_it_fails(self, action: Callable) -> Any:
        try:
            return action()
        except self.failures as error:
            self.writer = None
            log.warning("%s cannot be written: %s; the run goes on without", self.folder, error)


class Wandb(Scalars):
    """The same as a run of Weights & Biases, whose own variables (WANDB_MODE=offline, WANDB_PROJECT) say where it goes.

    As in the Trainer of transformers, updates are the axis of all curves. A run that goes on after a kill is the same run.
    """

    def __init__(self, folder: Path, purge_step: int, settings: Mapping):
        import wandb

        self.failures, self.settings = (OSError, wandb.Error), dict(settings)
        super().__init__(folder, purge_step)

    def _open(self, purge_step: int) -> Any:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pewe"),
            name="/".join(self.folder.parts[-4:-1]),
            id=digest([str(self.folder), self.settings]),
            resume="allow" if purge_step else None,
            dir=self.folder.parent,
            config=self.settings,
            reinit="create_new",  # the members of a stack are runs at the same time
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric("update")
        run.define_metric("*", step_metric="update")
        return run

    def _add(self, name: str, value: float, step: int) -> None:
        self.writer.log({name: value, "update": step})

    def _close(self) -> None:
        self.writer.finish()


class Report:
    """All that a run reports to."""

    def __init__(self, names: Sequence[str], folder: Path, purge_step: int, settings: Mapping):
        made = {
            "tensorboard": lambda: Scalars(folder / "tensorboard", purge_step),
            "wandb": lambda: Wandb(folder / "wandb", purge_step, settings),
        }
        self.parts = [made[name]() for name in names if name != NOWHERE]

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        for part in self.parts:
            part.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        for part in self.parts:
            part.close()


def check_report(names: Sequence[str]) -> None:
    """Raises UserError for a package that --report_to needs and that is not here."""
    if NOWHERE in names and len(names) > 1:
        raise UserError(f"--report_to {' '.join(names)}: {NOWHERE} stands alone")
    for name in names:
        if name != NOWHERE and importlib.util.find_spec(name) is None:
            raise UserError(f"--report_to {name}: the package {name} is not installed; pip install {name}")
