"""The notebooks from top to bottom, as a kernel would run their cells; only with fewer steps of a smaller network."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FEWER = (
    (r"^STEPS = \d+", "STEPS = 20"),
    (r"^FINETUNE_STEPS = \d+", "FINETUNE_STEPS = 10"),
    (r"^EPOCHS = \d+", "EPOCHS = 0.4"),
)
START = 'f"--config=configs/{config}.py", '
FIGURES = {"figure5": 2, "finetune": 1, "look_inside": 4, "predict": 1}
DIFFERENCES = {"look_inside": 5, "predict": 1}  # that they print, of what should be the same


def code_of(notebook: pathlib.Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(notebook, tmp_path):
    """In a copy of the repository: what it writes goes to `runs/` there."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "main.py", tmp_path)
    for folder in ("resnext_jax", "experiments"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    code, changes = code_of(notebook), 0
    for pattern, fewer in FEWER:
        code, count = re.subn(pattern, fewer, code, flags=re.MULTILINE)
        changes += count
    assert changes, "it trains for its full time"
    assert START in code
    code = code.replace(START, START + '"--config.model.name=resnext11_4x2d_tiny", ')
    script = "import matplotlib; matplotlib.use('agg')\n" + code + "\nprint('figures:', len(plt.get_fignums()))\n"
    (tmp_path / "notebook.py").write_text(script)
    result = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"figures: {FIGURES[notebook.stem]}\n" in result.stdout
    differences = re.findall(r"largest difference.* (\d\S*)$", result.stdout, re.MULTILINE)
    assert len(differences) == DIFFERENCES.get(notebook.stem, 0)
    assert max(map(float, differences), default=0.0) < 2e-5
    if notebook.stem == "figure5":
        # The runs that are kept: the errors are those of the table beside them.
        results = ROOT / "experiments" / "table3_cardinality" / "results" / "small" / "results.json"
        means = {row["name"]: row["mean"]["top-1"] for row in json.loads(results.read_text())["rows"]}
        printed = dict(re.findall(r"^(\d+ layers, \w+): ([\d.]+) % in validation", result.stdout, re.MULTILINE))
        assert len(printed) == 4
        for name, error in printed.items():
            assert float(error) == pytest.approx(means[name], abs=0.006)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_in_a_colab_the_first_cell_fetches_the_repository_once(notebook, tmp_path, monkeypatch):
    """An empty folder; git and pip are made up. A cell may be run again, and one that knows no address says so."""
    done = []

    def run(words, **_):
        done.append("clone" if words[:2] == ["git", "clone"] else "install")
        assert words[-1] == str(tmp_path / "resnext_jax_repository")
        if done[-1] == "clone":
            (tmp_path / "resnext_jax_repository" / "configs").mkdir(parents=True)
            (tmp_path / "resnext_jax_repository" / "configs" / "quickstart.py").touch()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (cell, *_) = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "".join(cell["source"])
    assert "\nREPOSITORY = None\n" in code
    with pytest.raises(RuntimeError, match="set REPOSITORY, above, to its address"):
        exec(code, {})
    code = code.replace("\nREPOSITORY = None\n", "\nREPOSITORY = 'https://example.org/resnext_jax.git'\n")
    for _ in range(2):
        exec(code, {})
        assert pathlib.Path.cwd() == tmp_path / "resnext_jax_repository"
    assert done == ["clone", "install"]
    assert sys.path[0] == str(tmp_path / "resnext_jax_repository")
