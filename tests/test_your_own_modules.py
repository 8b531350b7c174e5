"""docs/your_own_modules.md does what it says."""

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

pytest.importorskip("peft")


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path):
    """All blocks, in order: the Python ones by Python, the others by one bash; what they write goes elsewhere."""
    text = (ROOT / "docs" / "your_own_modules.md").read_text(encoding="utf-8")
    text = text.replace("own/", f"{tmp_path}/own/")
    script = [f'pewe() {{ "{sys.executable}" -m pewe "$@"; }}', "set -e"]
    for number, (language, block) in enumerate(re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL)):
        if language == "python":
            (tmp_path / f"{number}.py").write_text(block)
            block = f'"{sys.executable}" {tmp_path}/{number}.py'
        script.append(block)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    made = [ROOT / place / "mini_own_iters4" for place in ("checkpoints", "results")]  # no flag says otherwise
    assert not any(path.exists() for path in made)
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    rows = pd.read_csv(made[1] / "weights.tsv", sep="\t") if made[1].exists() else pd.DataFrame({"source": []})
    for path in made:
        shutil.rmtree(path, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("\n4")
    card = (tmp_path / "own" / "for_peft" / "README.md").read_text()
    assert "| where | " in card and "| yes | " in card and "base_model: checkpoints/mini_t5" in card
    assert (tmp_path / "own" / "tuned" / "result.tsv").is_file()
    assert (tmp_path / "own" / "ranked" / "rank.tsv").is_file() and set(rows["source"]) == {"where", "yes"}
