"""Which configs may go on from a checkpoint, and what the others are told."""

import copy
import json
import re
import shutil
from typing import Any

import pytest
import tiny

from resnext_jax.errors import UserError
from resnext_jax.train.resume import check_resumable


def changed(
    schedule: str = "step", allow: bool = False, num_images: int = 15_000, **fields: Any
) -> tuple[list[str], tuple[str, ...]]:
    """What `check_resumable` says, and the problems it raises, where these fields (`a__b` for a.b) are new."""
    before = json.loads(json.dumps(tiny.description(f"--config.schedule.name={schedule}")))
    before["dataset"]["num_images"] = 15_000
    now = copy.deepcopy(before)
    now["dataset"]["num_images"] = num_images
    for name, value in fields.items():
        *parents, leaf = name.split("__")
        place = now["config"]
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    said = []
    try:
        check_resumable(now, before, "of step 8", length_may_change=schedule == "step", allow=allow, log=said.append)
    except UserError as error:
        return said, error.problems
    return said, ()


def test_what_changes_the_trajectory_is_refused_with_both_values_and_the_remedy():
    fields: dict[str, Any] = dict(batch_size=64, seed=7, model__name="resnet50", data__crop="random_sized")
    said, problems = changed(**fields, log__every_steps=9)
    assert said == []
    assert "the checkpoint of step 8 was trained with another config" in problems[0]
    assert [re.sub(" +", " ", line.strip()) for line in problems[1:-1]] == [
        "batch_size was 32, is 64",
        "data.crop was 'none', is 'random_sized'",
        "model.name was 'resnext11_4x2d_tiny', is 'resnet50'",
        "seed was 0, is 7",
    ]
    assert all(words in problems[-1] for words in ("Go back", "--workdir=DIR", "--config.resume_changed=true"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.2),
        ("momentum", 0.8),
        ("weight_decay", 0.0),
        ("label_smoothing", 0.1),
        ("bn_group_images", 16),
        ("compute_dtype", "bfloat16"),
        ("schedule__boundaries_epochs", [1.0]),
        ("augment__flip", False),
        ("data__name", "fashion_mnist"),
        ("data__mean", [1.0]),
        ("num_images", 14_000),
    ],
)
def test_every_field_of_the_trajectory_matters(name, value):
    assert len(changed(**{name: value})[1]) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log__every_steps", 9),
        ("evaluate__batch_size", 99),
        ("checkpoint__keep_newest", 1),
        ("data__dir", "/elsewhere"),
        ("data__num_threads", 3),
        ("conv_impl", "dense"),
        ("accumulation_steps", 2),
        ("num_steps", 60),
        ("num_epochs", 7.0),
        ("a_field_of_a_newer_version", 1),
    ],
)
def test_the_others_are_reported(name, value):
    (line,), problems = changed(**{name: value})
    assert line.startswith(f"note: {name.replace('__', '.')} was ")
    assert line.endswith(f"and is {value!r} from here on")
    assert problems == ()


def test_a_setting_of_jax_matters():
    """A checkpoint of the time before settings were recorded goes on, with a note if the setting is unusual."""
    name, said = "JAX_THREEFRY_PARTITIONABLE", []
    plain = json.loads(json.dumps(tiny.description()))
    usual, other = ({**plain, "settings": {name: value}} for value in (True, False))

    def resume(now, before):
        check_resumable(now, before, "of step 8", length_may_change=True, allow=False, log=said.append)

    for before in (usual, plain):
        resume(usual, before)
    assert said == []
    resume(other, plain)
    assert [name in line for line in said] == [True]
    with pytest.raises(UserError, match=f"{name} +was True, is False"):
        resume(other, usual)


def test_the_length_matters_where_the_rate_depends_on_it():
    assert len(changed(schedule="cosine", num_steps=60)[1]) == 3


def test_on_purpose_all_is_reported_and_nothing_refused():
    said, problems = changed(allow=True, batch_size=64, resume_changed=True)
    assert said == ["note: batch_size was 32 at the last start, and is 64 from here on"]
    assert problems == ()


@pytest.mark.slow
def test_rows_that_were_removed_are_counted_and_said(tmp_path, capsys):
    every = ("--config.log.every_steps=1", "--config.evaluate.every_steps=4")
    tiny.train(tiny.config(*every, "--config.num_steps=4"), tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    capsys.readouterr()
    for steps, times in ((6, 2), (6, 2)):  # at its start and at its end; a run that is done says it too
        tiny.train(tiny.config(*every, f"--config.num_steps={steps}"), tmp_path)
        said = capsys.readouterr().err
        # Of the rows of steps 1 to 4 one is left. The evaluation of step 4 is made again.
        assert said.count(f"warning: 3 rows of {metrics} are missing") == times, said
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 4, 5, 6, 6]
    shutil.rmtree(tmp_path / "tensorboard")
    metrics.unlink()
    tiny.train(tiny.config(*every, "--config.num_steps=6"), tmp_path)
    assert "warning: 7 rows of" in capsys.readouterr().err
