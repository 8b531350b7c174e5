"""Drawing lines from a stream: the n lines whose seeded digest is smallest.

The digest of a line depends on its input, the task and the seed only. So a draw is uniform over the distinct inputs, needs
room for n lines, and is the same on any machine, Python, number of jobs, and order or sharding of the source.
"""

import heapq
from collections.abc import Iterable

from data.build.entry import digest
from pewe.data import Example

_ONE = 1 << 64  # digests are below this


def rank(salt: str, key: int) -> int:
    """The place of a line, by its key, in the draw that `salt` names."""
    return digest(salt, f"{key:016x}")


def in_share(salt: str, key: int, share: float) -> bool:
    """Whether a line belongs to the random part `share` (0 to 1) of all lines."""
    return rank(salt, key) < share * _ONE


class Smallest:
    """The `size` offered lines of smallest rank; all lines where size is 0. The keys that are offered must be distinct."""

    def __init__(self, salt: str, size: int):
        self.salt, self.size = salt, size
        self._heap: list[tuple[int, int, Example]] = []  # minus rank, order of arrival, line: the largest rank on top
        self._offered = 0

    def offer(self, key: int, example: Example) -> None:
        """One more line of the stream."""
        self._offered += 1
        item = (-rank(self.salt, key), self._offered, example)
        if not self.size or len(self._heap) < self.size:
            heapq.heappush(self._heap, item)
        elif item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def by_rank(self) -> list[Example]:
        """The lines drawn, in random (seeded) order."""
        return [example for _, _, example in sorted(self._heap, reverse=True)]

    def by_arrival(self) -> list[Example]:
        """The lines drawn, in the order of the source."""
        return [example for _, _, example in sorted(self._heap, key=lambda item: item[1])]


class FewShot:
    """The few-shot train and dev lines of one seed: `shots` each, or `shots` of each class each."""

    def __init__(self, task: str, seed: int, shots: int, labels: Iterable[str]):
        self.shots = shots
        classes = tuple(labels) or ("",)
        self._drawn = {label: Smallest(f"{task} {seed}", 2 * shots) for label in classes}

    def offer(self, key: int, example: Example) -> None:
        """One more line of the train split."""
        label = example.outputs[0] if "" not in self._drawn else ""
        self._drawn[label].offer(key, example)

    def draw(self) -> tuple[list[Example], list[Example]]:
        """Train and dev lines, class by class; a class with too few lines is halved."""
        train: list[Example] = []
        dev: list[Example] = []
        for drawn in self._drawn.values():
            lines = drawn.by_rank()
            half = min(self.shots, (len(lines) + 1) // 2)
            train += lines[:half]
            dev += lines[half : half + self.shots]
        return train, dev

    def short(self) -> dict[str, int]:
        """The classes that have fewer than 2 x shots lines, with their number of lines; "" where there are no classes."""
        sizes = {label: len(drawn.by_rank()) for label, drawn in self._drawn.items()}
        return {label: size for label, size in sizes.items() if size < 2 * self.shots}
