"""A Ray cluster on this machine, and the grid on it, for tests that kill parts of both."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT

RAY = Path(sys.executable).with_name("ray")
# as `python -m pewe.grid`, in the folder where it is started
GRID = """
import sys
from pewe.cli import parse
from pewe.errors import one_line
from pewe.grid.config import Config
from pewe.grid.run import run
with one_line():
    run(parse(Config, sys.argv[1:]))
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}


def grid(folder: Path, *words: object) -> subprocess.Popen:
    """The command, in a folder of its own."""
    command = [sys.executable, "-c", GRID, *map(str, words)]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)


def below(process: int) -> list[int]:
    """A process and all that it has started, by /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def kill(processes: list[int]) -> None:
    """SIGKILL to those that are still there."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def workers_below(process: int) -> list[int]:
    """The workers of the grid among what a process has started."""
    found = []
    for one in below(process):
        try:
            if b"ray::Worker" in Path(f"/proc/{one}/cmdline").read_bytes():
                found.append(one)
        except OSError:
            continue
    return found


@dataclass
class Cluster:
    """A head without any CPU, and nodes of one CPU each."""

    port: int
    folder: Path  # for what Ray writes; a short path
    head: subprocess.Popen | None = None
    nodes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Of the head."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Cluster":
        self.head = self._start("--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false")
        self._wait_for_head()
        for _ in range(2):
            self.add()
        return self

    def __exit__(self, *error) -> None:
        for process in (*self.nodes, self.head):
            kill(below(process.pid))
            process.wait()

    def _wait_for_head(self) -> None:
        end = time.monotonic() + 180
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if self.head.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self.folder / "ray.log").read_text()[-2000:]) from None
                time.sleep(0.5)

    def _start(self, *words: str) -> subprocess.Popen:
        command = [str(RAY), "start", "--block", "--object-store-memory=80000000", *words]
        with (self.folder / "ray.log").open("ab") as log:
            return subprocess.Popen(command, env=ENVIRONMENT, cwd=self.folder, stdout=log, stderr=log)

    def add(self) -> None:
        """Another node."""
        self.nodes.append(self._start(f"--address={self.address}", "--num-cpus=1"))

    def lose_node(self, number: int = 0) -> None:
        """SIGKILL to a node and all of its processes; another one takes its place."""
        node = self.nodes.pop(number)
        kill(below(node.pid))
        node.wait()
        self.add()

    def lose_worker(self, dice: random.Random) -> bool:
        """SIGKILL to a worker; whether there was one."""
        found = [worker for node in self.nodes for worker in workers_below(node.pid)]
        if found:
            kill([dice.choice(found)])
        return bool(found)
