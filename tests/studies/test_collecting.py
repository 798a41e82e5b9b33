"""From the metrics of runs to the table and the figure."""

import itertools
import json
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from experiments.common import collect, draw, files
from experiments.common.study import Evaluation, Row, Scale, Study, runs_of
from resnext_jax.errors import UserError
from tests.studies.made_up import STUDIES, execute, metrics, study_of


@pytest.fixture
def no_tracing(monkeypatch):
    """Made-up parameters, another number for each network: to trace them takes seconds each."""
    numbers = itertools.count(100_000, 10_000)
    monkeypatch.setattr(collect, "cost", lambda config: (next(numbers), 1))


def test_mean_and_standard_error_by_hand():
    # Mean 3; squares 4 + 1 + 0 + 9 = 14; sqrt(14 / 3) = 2.1602; / sqrt(4) = 1.0801.
    assert collect.mean_and_error([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(1.0801234))
    assert collect.mean_and_error([5.0]) == (5.0, None)
    assert collect.percent([20.0, 21.0]) == "20.50 ± 0.50"
    assert [collect.percent([20.0]), collect.percent([])] == ["20.00", ""]


@pytest.mark.slow
def test_table_of_made_up_runs(tmp_path):
    rows = [
        Row("1x32d, a", "quickstart", {"num_epochs": 2.0}, {"top-1": 23.9}, like="50 layers"),
        Row("b", "quickstart", {"num_epochs": 2.0, "seed": 1}),
    ]
    study = study_of(*rows, seeds=(0, 1))
    metrics(tmp_path / "1x32d_a_seed0", [0.90, 0.80])
    metrics(tmp_path / "1x32d_a_seed1", [0.70, 0.82])
    metrics(tmp_path / "b_seed0", [0.75])  # one epoch of two
    files.write_whole(files.epath.Path(tmp_path / files.MARK), '{"experiment": "two_steps", "scale": "tiny"}')
    assert execute(study, tmp_path, "--collect", "--seeds=0,1") == 0
    table = (tmp_path / "table.md").read_text()
    (line,) = [line for line in table.splitlines() if line.startswith("| 1x32d, a")]
    cells = [cell.strip() for cell in line.split("|")]
    # Errors 20 and 18: mean 19, deviation sqrt(2), / sqrt(2) = 1. Best 10 and 18. 640 images at 40/s.
    assert cells[2] == "50 layers"
    assert cells[5:] == ["23.9", "19.00 ± 1.00", "14.00 ± 4.00", "2 of 2", "40", "0:16", ""]
    assert "**Not complete**: 2 missing: b seed 0; b seed 1." in table
    assert "Complete." not in table
    result = json.loads((tmp_path / "results.json").read_text())
    assert not result["complete"]
    assert result["rows"][0]["mean"] == {"top-1": pytest.approx(19.0), "top-5": pytest.approx(1.0)}
    assert result["rows"][0]["standard_error"]["top-1"] == pytest.approx(1.0)
    assert result["rows"][1]["missing"] == ["seed 0", "seed 1"]
    assert [run["training"] for run in result["rows"][0]["runs"]] == [50.0, 50.0]


def test_a_table_with_an_evaluation_missing_is_not_complete(tmp_path):
    """And the figure has what is there where it belongs."""
    evaluations = [Evaluation("32 px", {"data.image_size_px": 32}), Evaluation("40 px", {"data.image_size_px": 40})]
    scale = Scale([Row("one", "quickstart", {"num_epochs": 1.0})], (0, 1), "", evaluations)
    figures = []
    study = Study("two_steps", "", {"tiny": scale}, lambda figure, rows: figures.append(rows))
    for seed, sizes_px in ((0, [40]), (1, [32, 40])):
        metrics(tmp_path / f"one_seed{seed}", [0.8])
        for size_px in sizes_px:
            kept = {"fields": {"data.image_size_px": size_px}, "top1": 1 - size_px / 100, "top5": 1.0}
            (tmp_path / f"one_seed{seed}" / f"evaluation_{size_px}_px.json").write_text(json.dumps(kept))
    files.write_whole(files.epath.Path(tmp_path / files.MARK), '{"experiment": "two_steps", "scale": "tiny"}')
    assert execute(study, tmp_path, "--collect", "--seeds=0,1") == 0
    assert "**Not complete**: 1 missing: one seed 0, 32 px." in (tmp_path / "table.md").read_text()
    result = json.loads((tmp_path / "results.json").read_text())
    assert (result["complete"], result["rows"][0]["missing"]) == (False, ["seed 0, 32 px"])

    ((of_both,),) = figures
    first = of_both | {"name": "half", "runs": of_both["runs"][:1]}
    figure = matplotlib.figure.Figure()
    STUDIES["table5_resolution"].draw(figure, [first, of_both])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["as trained", "32 px", "40 px"]
    for bars, errors in zip(axes.containers, ([20, np.nan, 40], [20, 32, 40]), strict=True):
        np.testing.assert_allclose(np.asarray(vars(bars)["lines"][0].get_ydata(), float), errors)


@pytest.mark.parametrize("top1", ["1.7", '"bad"', "NaN", "null"])
def test_what_is_no_accuracy_is_named_and_nothing_written(tmp_path, top1):
    study = study_of(Row("one", "quickstart", {"num_epochs": 1.0}))
    metrics(tmp_path / "one_seed0", [0.25])
    path = tmp_path / "one_seed0" / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.25", top1))
    with pytest.raises(UserError, match=r"top1=.* must be accuracies in \[0, 1\]|top1 is .*, not a number"):
        execute(study, tmp_path, "--collect")
    assert not (tmp_path / "table.md").exists()


def test_collecting_seeds_that_are_not_there_keeps_the_table(tmp_path):
    study = study_of(Row("one", "quickstart", {"num_epochs": 1.0}))
    metrics(tmp_path / "one_seed0", [0.25])
    assert execute(study, tmp_path, "--collect") == 0
    before = (tmp_path / "table.md").read_text()
    with pytest.raises(UserError, match=r"no run of --seeds=5,6 is done.*nothing was written"):
        execute(study, tmp_path, "--collect", "--seeds=5,6")
    assert (tmp_path / "table.md").read_text() == before


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.slow
def test_every_figure_has_something_on_it(name, tmp_path, no_tracing):
    scale = STUDIES[name].scales["tiny"]
    for index, run in enumerate(runs_of(scale, str(tmp_path), scale.seeds)):
        num_epochs = int(run.config().num_epochs)
        metrics(Path(run.workdir), np.linspace(0.5, 0.8 + 0.001 * index, num_epochs))
        for evaluation in scale.evaluations:
            kept = {"fields": dict(evaluation.fields), "top1": 0.81, "top5": 0.9}
            run.file(evaluation).write_text(json.dumps(kept))
    files.write_whole(files.epath.Path(tmp_path / files.MARK), json.dumps({"experiment": name, "scale": "tiny"}))
    assert execute(STUDIES[name], tmp_path, "--collect") == 0
    assert (tmp_path / "table.md").read_text().endswith("\nComplete.\n")
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert picture.shape[1] > 600
    for color in draw.COLORS[: min(2, len(scale.rows))]:
        rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(picture - np.array(rgb)).max(-1) < 8).sum() > 30, color


def test_figure_6_has_the_1k_way_errors_while_training(tmp_path, no_tracing):
    """Where the runs have them, as those of ImageNet-5K do; at small scale, without, it is as Figure 5."""
    study = STUDIES["table6_imagenet5k"]
    for name, has in (("full", True), ("tiny", False)):
        runs_here = runs_of(study.scales[name], str(tmp_path / name), [0])
        for run in runs_here:
            metrics(Path(run.workdir), [0.3, 0.5, 0.6])
            if has:
                path = Path(run.workdir) / "metrics.jsonl"
                path.write_text(path.read_text().replace('"top5": 0.99', '"top5": 0.99, "top1_present": 0.7'))
        figure = matplotlib.figure.Figure()
        study.draw(figure, collect.rows_of(study.scales[name], runs_here, runs_here))
        left = figure.axes[0]
        # Two networks of each depth; in Figure 6 their validation errors alone, 30 % throughout.
        lines = [y.tolist() for y in (np.asarray(line.get_ydata()) for line in left.get_lines()) if len(y)]
        assert left.get_ylabel() == ("1K-way top-1 error (%)" if has else "top-1 error (%)")
        assert lines == (
            [[pytest.approx(30.0)] * 3] * 2
            if has
            else [pytest.approx([50.0] * 3), pytest.approx([70.0, 50.0, 40.0])] * 2
        )


def test_every_network_of_a_figure_has_its_own_color(tmp_path, no_tracing):
    """Table 3 at full scale has the most: the curves of the first and the last of five, twice, and all ten errors."""
    study = STUDIES["table3_cardinality"]
    runs = runs_of(study.scales["full"], str(tmp_path), [0])
    for run in runs:
        metrics(Path(run.workdir), [0.5, 0.7])
    rows = collect.rows_of(study.scales["full"], runs, runs)
    figure = matplotlib.figure.Figure()
    study.draw(figure, rows)
    curves = {line.get_label(): line.get_color() for axes in figure.axes for line in axes.get_lines()}
    ends = [line.get_color() for axes in figure.axes[1::2] for line in axes.get_lines() if line.get_marker() == "."]
    assert len(ends) == len(set(ends)) == 10
    names = [row["name"] for row in rows]
    assert [curves[names[at]] for at in (0, 4, 5, 9)] == [ends[at] for at in (0, 4, 5, 9)]
