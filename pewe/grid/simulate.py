"""How long steps take on so many devices, by the time of each alone."""

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path

from pewe.grid.step import Step

NOTHING: Mapping[Path, Step] = {}


def in_time(
    steps: Sequence[Step], took: Mapping[Path, tuple[int, float]], devices: int, first: Mapping[Path, Step] = NOTHING
) -> tuple[float, list[Step]]:
    """Seconds until all steps are done, and the chain of steps that ends last.

    `took`: folder -> its parts, and its seconds on one device, which the parts share equally. A step begins when those that it
    needs have ended, and the one that `first` has for it; a device takes the next part in the order of the steps. So does the
    schedule, where nothing of a grid begins before its sources have ended.
    """
    order = {step.folder: number for number, step in enumerate(steps)}
    needs = {}
    for step in steps:
        before = {need.folder: need for need in (*step.needs, first.get(step.folder, step))}
        needs[step.folder] = [need for folder, need in before.items() if folder in order and folder != step.folder]
    waiting = {folder: len(own) for folder, own in needs.items()}
    parts = {folder: took[folder][0] for folder in order}
    ready = [(order[f], f) for f, count in waiting.items() if not count for _ in range(parts[f])]
    heapq.heapify(ready)
    running: list[tuple[float, int, Path]] = []  # end, order, folder
    now, ends = 0.0, {}
    while ready or running:
        while ready and len(running) < devices:
            number, folder = heapq.heappop(ready)
            heapq.heappush(running, (now + took[folder][1] / took[folder][0], number, folder))
        now, _, folder = heapq.heappop(running)
        parts[folder] -= 1
        if parts[folder]:
            continue
        ends[folder] = now
        for step in steps:
            if any(need.folder == folder for need in needs[step.folder]):
                waiting[step.folder] -= 1
                if not waiting[step.folder]:
                    for _ in range(parts[step.folder]):
                        heapq.heappush(ready, (order[step.folder], step.folder))
    return now, _last_chain(steps, needs, ends)


def _last_chain(steps: Sequence[Step], needs: Mapping[Path, list[Step]], ends: Mapping[Path, float]) -> list[Step]:
    chain: list[Step] = []
    step = max(steps, key=lambda one: ends[one.folder], default=None)
    while step:
        chain.insert(0, step)
        step = max(needs[step.folder], key=lambda one: ends[one.folder], default=None)
    return chain
