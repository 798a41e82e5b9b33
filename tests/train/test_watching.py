"""The timed fields of a row by hand, and traces that XProf reads."""

import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from resnext_jax import cli, metrics
from resnext_jax.errors import UserError
from resnext_jax.models.complexity import multiply_adds
from resnext_jax.runtime.profiling import Profiler
from resnext_jax.sharding import Place, make_mesh
from resnext_jax.train import step_sums
from resnext_jax.train.monitor import throughput_of
from resnext_jax.train.step_sums import DivergenceMonitor, StepAccumulator, Throughput


def test_fields_by_hand(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    # Four chips of 1e12; 10 ** 9 flops for each image; 5 steps of 8 images in 2 s.
    watched = Throughput(batch_size=8, num_devices=4, flops_per_image=1e9, peak_flops_per_s=1e12)
    devices = [Device({"peak_bytes_in_use": 7}), Device({"peak_bytes_in_use": 9}), Device({}), Device(None)]
    monkeypatch.setattr(step_sums.jax, "local_devices", lambda: devices)
    row = watched.row([0.3, 0.2, 0.2, 0.3, 1.0], [0.1, 0.0, 0.0, 0.0, 0.4])
    assert row == pytest.approx(
        {
            "images_per_s": 20.0,
            "images_per_s_per_chip": 5.0,
            "step_p50_s": 0.3,
            "step_p95_s": 0.86,  # a fifth below the largest, between 0.3 and 1.0
            "step_max_s": 1.0,
            "input_wait": 0.25,
            "input_wait_p95_s": 0.34,
            "mfu": 0.005,
            "device_memory_peak_bytes": 9,
        }
    )
    assert row.keys() == metrics.TIMED_FIELDS
    monkeypatch.setattr(step_sums.jax, "local_devices", lambda: [Device(None)])
    row = Throughput(8, 4, 1e9, None).row([1.0], [0.0])
    assert metrics.TIMED_FIELDS - row.keys() == {"mfu", "device_memory_peak_bytes"}  # as on a CPU


def test_the_peak_and_the_flops_of_a_machine():
    run, _ = tiny.assembled()
    mesh = make_mesh(jax.devices()[:2])
    watched = throughput_of(run, Place(mesh, "tpu", "v5e"))
    assert (watched.num_devices, watched.batch_size, watched.peak_flops_per_s) == (2, 32, 197e12)
    assert throughput_of(run, Place(mesh, "cpu", "cpu")).peak_flops_per_s is None
    # Two for a multiply-add, three for forward and twice as much backward.
    assert watched.flops_per_image == 6 * multiply_adds(run.model, (28, 28, 1))


def test_a_step_is_timed_when_it_is_ready_not_when_it_is_dispatched(monkeypatch):
    """A clock that the device moves: dispatch takes nothing, each step 2 s, the pause between rows 50 s."""
    now_s, log = [100.0], []
    monkeypatch.setattr(step_sums.time, "monotonic", lambda: now_s[0])

    def ready(sums):
        now_s[0] += 2.0
        log.append(int(sums.loss))

    monkeypatch.setattr(step_sums.jax, "block_until_ready", ready)
    found = DivergenceMonitor("", skips=False, max_skipped_in_a_row=1, spike_nats=1e9, losses=(), log=log.append)
    steps = StepAccumulator(Throughput(8, 1, 1.0, None), found)
    now_s[0] += 50
    steps.leave_out(50)
    for step in range(1, 6):
        steps.add(step, metrics.Sums(np.float32(step), np.int32(0), np.int32(0), np.int32(8)), 0.5)
        assert log == list(range(1, step - 1))  # two steps behind
    row = steps.row()
    assert log == [1, 2, 3, 4, 5]
    assert (row["step_p50_s"], row["step_max_s"], row["images_per_s"], row["input_wait"]) == (2.0, 2.0, 4.0, 0.25)


def traces(workdir):
    return sorted((workdir / "tensorboard" / "plugins" / "profile").glob("*/*.trace.json.gz"))


@pytest.mark.slow
def test_a_run_is_traced_at_given_steps_and_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny.ROOT)
    (tmp_path / "profile").touch()
    switched = []
    switch = Profiler.switch
    monkeypatch.setattr(Profiler, "switch", lambda self: (switched.append(self._directory is None), switch(self)))
    overrides = (
        *("--config.num_steps=8", "--config.watch.profile_steps=2,3", "--config.log.every_steps=4"),
        *("--config.checkpoint.every_steps=8", "--config.evaluate.every_steps=8"),
    )
    with tiny.command_line(*tiny.arguments(f"--workdir={tmp_path}", *overrides)) as (argv, values):
        cli.main(values, argv)
    # Steps 2 and 3; the request is seen at the row of step 4, and lasts to the end.
    assert switched == [True, False, True, False]
    assert not (tmp_path / "profile").exists()
    assert capsys.readouterr().err.count("profile written to") == 2
    files = traces(tmp_path)
    assert len(files) >= 1
    assert all(list(path.parent.glob("*.xplane.pb")) for path in files)
    steps = set()
    for path in files:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        steps |= {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
    assert {2, 3, 5, 8} <= steps
    assert not {1, 4} & steps
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    timed = metrics.TIMED_FIELDS - {"mfu", "device_memory_peak_bytes"}  # which a CPU has not
    assert [row["phase"] for row in rows] == ["train", "train", "evaluate"]
    assert all(timed <= row.keys() for row in rows[:2])
    assert all(row["step_p50_s"] <= row["step_p95_s"] <= row["step_max_s"] for row in rows[:2])


def test_only_the_first_process_traces(tmp_path):
    (tmp_path / "profile").touch()
    second = Profiler(str(tmp_path), (1, 2), False, print)
    second.look(3)
    assert not any(second.switches(step) for step in range(1, 5))
    assert (tmp_path / "profile").exists()
    first = Profiler(str(tmp_path), (), True, print)
    assert not any(first.switches(step) for step in range(1, 20))
    first.look(3)
    assert [step for step in range(1, 20) if first.switches(step)] == list(range(4, 14))  # ten steps; not switched here


def test_a_trace_that_the_workdir_does_not_take_ends_in_a_sentence(tmp_path, monkeypatch):
    def start_trace(directory):
        (Path(directory) / "plugins").mkdir()
        (Path(directory) / "plugins" / "trace").write_text("a trace")

    monkeypatch.setattr(jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    (tmp_path / "tensorboard").write_text("a file in the place of the directory")
    profiler = Profiler(str(tmp_path), (1, 1), True, pytest.fail)
    profiler.switch()
    with pytest.raises(
        UserError, match=r"tensorboard/plugins/trace could not be written \(.*it continues from the newest"
    ):
        profiler.switch()
    profiler.close()  # does not try again
