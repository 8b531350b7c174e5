"""Progress bars, and who else is told where they stand."""

import contextlib
from collections.abc import Callable, Iterator

from tqdm import tqdm

_listeners: list[Callable[["Bar"], None]] = []


class Bar(tqdm):
    """A bar over a part of the work, whose place is told to whoever listens, also where it is not shown (`disable`).

    `parts` is what it stands for in the whole: the number of deltas that are tuned in lockstep, say.
    """

    def __init__(self, *args, parts: int = 1, **options):
        self.parts = parts
        super().__init__(*args, **options)
        self.unit = options.get("unit", "it")  # tqdm forgets it where nothing is shown

    def update(self, n: float = 1) -> bool | None:
        if self.disable:
            self.n += n
        shown = super().update(n)
        for listener in _listeners:
            listener(self)
        return shown

    @property
    def share(self) -> float:
        """The part that is done, 0 to 1."""
        return min(1.0, self.n / self.total) if self.total else 0.0


@contextlib.contextmanager
def listening(listener: Callable[[Bar], None]) -> Iterator[None]:
    """Call the listener at every update of every bar that is made in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
