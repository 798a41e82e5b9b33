"""What is said at the end of a run."""

import json

import tiny

from resnext_jax.train.workdir import summarize


def test_the_summary_has_the_last_and_the_best_evaluation(tmp_path):
    accuracies = [(10, 0.50), (20, 0.75), (30, 0.70)]
    rows = [
        {"step": step, "epoch": step / 10, "phase": "evaluate", "loss": 1.5, "top1": top1, "top5": 0.9}
        for step, top1 in accuracies
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    task, _ = tiny.assembled()
    summarize(str(tmp_path), task, said.append)
    lines = [line.split() for line in "\n".join(said).splitlines()]
    assert ["last", "30", "3.00", "1.5000", "70.00%", "90.00%"] in lines
    assert ["best", "20", "2.00", "1.5000", "75.00%", "90.00%"] in lines


def test_of_equal_scores_the_latest_is_best_as_checkpoints_are_kept(tmp_path):
    fields = {"epoch": 1.0, "phase": "evaluate", "loss": 1.5, "top1": 0.5, "top5": 0.9}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, **fields}) + "\n" for n in (1, 2)))
    said: list[str] = []
    summarize(str(tmp_path), tiny.assembled()[0], said.append)
    assert [line.split()[:2] for line in said if line.startswith("best")] == [["best", "2"]]
