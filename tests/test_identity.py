"""Fingerprints, sealed records and locks."""

import multiprocessing
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pewe import files as results
from pewe import identity
from pewe.errors import UserError
from pewe.flags import flag


@dataclass(frozen=True)
class Config:
    """An example."""

    rate: float = flag(0.1, "a rate")
    folder: str = flag("x", "where", decides=False)


def test_a_flag_says_whether_it_decides():
    assert identity.deciding(Config(0.2, "y")) == {"rate": 0.2}
    assert identity.deciding(Config(0.2, "y"), rate=0.3) == {"rate": 0.3}


def test_state_digest_sees_names_shapes_and_values():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    same = {"b": torch.zeros(2), "a": torch.arange(6.0).view(2, 3)}
    others = [
        {**state, "a": state["a"].view(3, 2)},
        {**state, "b": torch.tensor([0.0, 1e-30])},
        {"a": state["a"], "c": state["b"]},
    ]
    digests = {identity.state_digest(other) for other in others}
    assert identity.state_digest(same) == identity.state_digest(state)
    assert len(digests) == 3 and identity.state_digest(state) not in digests


def test_model_digest_is_of_content(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (folder / name).write_text(name)
    before = identity.model_digest(str(folder))
    (folder / "README.md").write_text("a note")
    (folder / "._config.json").write_text("a hidden file")
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert identity.model_digest(str(folder)) == before == identity.model_digest(str(moved))
    for name in ("config.json", "model.safetensors", "spiece.model"):
        changed = shutil.copytree(folder, tmp_path / name)
        (changed / name).write_text(name.upper())  # of equal size
        assert identity.model_digest(str(changed)) != before


def test_a_file_changed_in_place_is_seen(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    before = identity.file_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert identity.file_digest(path) != before


def test_difference_says_what_is_not_equal():
    assert identity.difference({"a": [1, 2], "more": 0}, {"a": (1, 2)}) == ""
    assert identity.difference(None, {"a": 1}) == "it has no record of what it was made from"
    assert identity.difference({}, {"a": 1}) == "its record has no 'a' (an earlier version)"
    assert identity.difference({"a": 1}, {"a": 2}) == "'a' was 1, is 2"


def test_every_changed_byte_of_a_record_is_seen(tmp_path):
    path, content = tmp_path / "run.json", {"settings": {"rate": 5e-4, "tasks": ["a"]}, "test": 0.125}
    results.write_record(path, content)
    assert results.read_record(path) == content
    written = path.read_bytes()
    for place in range(len(written)):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        assert results.read_record(path) in (None, content)  # equal where it was a blank
    results.write_json(path, content)
    assert results.read_record(path) is None  # not sealed: an earlier version


def test_equal_results_have_equal_seals_whatever_their_times():
    first, second = ({"test": 0.5, "provenance": {"seconds": seconds}} for seconds in (1, 2))
    sealed = [identity.sealed(content) for content in (first, second)]
    assert sealed[0]["sha256"] == sealed[1]["sha256"] and [identity.unsealed(one) for one in sealed] == [first, second]
    sealed[0]["provenance"]["seconds"] = 3
    assert identity.unsealed(sealed[0]) is None
    assert identity.unsealed({**sealed[1], "provenance": 5}) is None
    assert identity.unsealed({"test": 0.5, "sha256": sealed[1]["sha256"]}) == {"test": 0.5}


def _hold(folder: Path, held, release):
    with results.hold(folder):
        held.set()
        release.wait(30)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    spawn = multiprocessing.get_context("fork")
    held, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(30)
    with pytest.raises(UserError, match=f"is in use by process {other.pid} on "), results.hold(tmp_path):
        pass
    other.kill()  # the lock of a dead process is free
    other.join()
    with results.hold(tmp_path):
        pass
