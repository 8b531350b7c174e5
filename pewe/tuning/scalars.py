"""TensorBoard scalars of a run: a by-product, without which the run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pewe.cli import log


class Scalars:
    """Scalars in a folder for TensorBoard. Where they cannot be written (any more) a warning says so, once."""

    def __init__(self, folder: Path, purge_step: int):
        self.folder, self.writer = folder, None
        self.writer = self._unless_it_fails(lambda: SummaryWriter(str(folder), purge_step=purge_step))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        if self.writer is not None:
            self._unless_it_fails(lambda: self.writer.add_scalar(name, value, step))

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self._unless_it_fails(self.writer.close)

    def _unless_it_fails(self, action: Callable) -> Any:
        try:
            return action()
        except OSError as error:
            self.writer = None
            log.warning("%s cannot be written: %s; the run goes on without", self.folder, error)
