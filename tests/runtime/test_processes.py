"""runtime/processes.py: how the processes of a run find each other, what they compare, how they end."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
import tiny

from resnext_jax.errors import UserError
from resnext_jax.runtime import processes, startup
from tests.data.archives import write_folders

ENDLESS = ("--config.num_steps=100000", "--config.num_epochs=1000", "--config.evaluate.every_steps=100000")
LAUNCHERS = ("JAX_COORD", "JAX_NUM_PROC", "JAX_PROC", "JAX_LOCAL", "SLURM_", "OMPI_", "PMI_", "KUBERNETES_", "JOB_COMP")
NOTHING_FOUND = ValueError("coordinator_address should be defined.")
# As `srun` leaves it in task 5 of a job of two nodes with four tasks each.
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_GPUS_ON_NODE": "4",
}

# ------------------------------------------------------------------------------------------- What JAX is asked for


@pytest.fixture
def asked(monkeypatch):
    """Calls `join` with these variables and flags; returns what JAX is asked for, None for nothing."""
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)

    def join(environment, *flags, error=None):
        calls = []

        def initialize(*arguments, **options):
            calls.append((arguments, options))
            if error is not None:
                raise error

        for name in list(os.environ):
            if name.startswith(LAUNCHERS):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("no_grpc_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, os.environ.get(name, ""))  # which the test puts back
        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        processes.join(*(flags or (None, None, None)), timeout_s=30, stops=True)
        return calls[0] if calls else None

    return join


def test_lone_process_asks_for_nothing(asked):
    assert asked({}, None, 1, None) is None
    assert asked({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    asked({}, error=NOTHING_FOUND)  # by a launcher
    asked({"KUBERNETES_SERVICE_HOST": "h"}, error=RuntimeError("no job of this pod"))


def test_variables_and_flags_which_win(asked):
    variables = {"JAX_COORDINATOR_ADDRESS": "[fe80::1]:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
    part, options = asked(variables)
    assert part == ("[fe80::1]:1234", 3, 2)
    assert options["cluster_detection_method"] == "deactivate"
    assert options["heartbeat_timeout_seconds"] == 20
    assert options["initialization_timeout"] == 30
    assert options["coordinator_bind_address"] is None
    assert asked(variables, "b:99", 4, 0)[0] == ("b:99", 4, 0)
    assert asked(variables, None, 1, None) is None


def test_a_run_of_one_machine_listens_on_loopback(asked):
    assert asked({}, "127.0.0.1:99", 2, 0)[1]["coordinator_bind_address"] == "127.0.0.1:99"


def test_a_launcher_is_left_to_jax(asked):
    part, options = asked(SLURM)
    assert part == (None, None, None)
    assert options["cluster_detection_method"] is None
    assert options["local_device_ids"] is None
    assert asked(SLURM, "10.0.0.1:99", None, None)[0] == ("10.0.0.1:99", None, None)


def test_slurm_task_has_the_gpus_that_are_its_own(asked):
    per_node = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NUM_TASKS": "2"}
    assert asked(per_node)[1]["local_device_ids"] == [0, 1, 2, 3]
    assert asked({**per_node, "CUDA_VISIBLE_DEVICES": "2,3"})[1]["local_device_ids"] == [0, 1]
    assert asked({**SLURM, "CUDA_VISIBLE_DEVICES": "3"})[1]["local_device_ids"] == [0]
    assert asked({**SLURM, "CUDA_VISIBLE_DEVICES": "3", "JAX_LOCAL_DEVICE_IDS": "1"})[1]["local_device_ids"] is None


def test_interactive_slurm_step_is_alone(asked):
    """In the shell of `salloc --ntasks=8` there is one task, while the job's variables say eight."""
    one = {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert asked(one) is None
    assert asked({**one, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.96.0.1:3"}) is not None  # mpirun within salloc


def test_proxies_are_kept_from_the_coordinator(asked):
    asked({"no_grpc_proxy": "example.org"}, "10.0.0.1:99", 2, 0)
    assert os.environ[processes.NO_GRPC_PROXY] == "example.org,10.0.0.1"
    asked({"no_grpc_proxy": "", "grpc_proxy": "http://proxy:3128"}, "[fe80::1]:99", 2, 0)
    assert os.environ[processes.NO_GRPC_PROXY] == "fe80::1"
    asked({**SLURM, "grpc_proxy": "http://proxy:3128"})  # whose coordinator JAX finds
    assert os.environ[processes.GRPC_PROXY] == ""


@pytest.mark.parametrize(
    ("variables", "flags", "error", "phrases"),
    [
        ({}, ("a", 2, 0), None, ["address 'a' must be HOST:PORT", "JAX_COORDINATOR_ADDRESS"]),
        ({}, ("a:99999", 2, 1), None, ["address 'a:99999'", "from 1 to 65535"]),
        ({"JAX_NUM_PROCESSES": "2"}, (), NOTHING_FOUND, ["coordinator_address should be defined", "--process_id"]),
        ({}, ("a:1", 2, None), ValueError("The process id must be defined."), ["process id", "JAX_PROCESS_ID"]),
        ({"JAX_NUM_PROCESSES": "two"}, ("a:1", None, 0), None, ["'two'", "--num_processes", "[0, P)"]),
        (SLURM, (), ValueError("invalid literal: 'x'"), ["could not be connected", "'x'", "--num_processes=1"]),
        ({}, ("a:1", 2, 0), RuntimeError("Failed to start RPC server"), ["RPC server", "the port is free"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (), NOTHING_FOUND, ["OMPI_COMM_WORLD_SIZE=2", "--process_id"]),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "h"}, (), NOTHING_FOUND, ["pip install kubernetes"]),
    ],
)
def test_refused_with_an_instruction(asked, variables, flags, error, phrases):
    with pytest.raises(UserError) as raised:
        asked(variables, *flags, error=error)
    assert all(phrase in str(raised.value) for phrase in phrases), raised.value


LAUNCHED = """
import jax
from resnext_jax.runtime import processes
processes.join(None, None, None, timeout_s=9, stops=False)
print(jax.process_count(), jax.distributed.is_initialized())
"""


@pytest.mark.slow
def test_single_task_that_jax_finds_is_alone_without_a_port():
    """As a batch script of Slurm may leave it: JAX reads a job of one process, and opens a port for it."""
    one = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost"}
    output = subprocess.run(
        [sys.executable, "-c", LAUNCHED],
        cwd=tiny.ROOT,
        env={**os.environ, **one, "SLURM_JOB_ID": str(os.getpid())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.split() == ["1", "False"]


# --------------------------------------------------------------------------------------------- What is compared


def test_differences_name_both_values_and_the_processes():
    names = ["process 0 (a)", "process 1 (b)", "process 2 (c)", "process 3 (d)"]
    facts = [
        {"batch_size": "256", "version of jax": "0.10.2"},
        {"batch_size": "512", "version of jax": "0.10.2"},
        {"batch_size": "512", "version of jax": "0.11.0", "new": "1"},
        {"version of jax": "0.10.2"},
    ]
    assert processes.differences(names, facts) == [
        "  batch_size: 256 on process 0 (a), but 512 on process 1 (b), process 2 (c), but absent on process 3 (d)",
        "  version of jax: 0.10.2 on process 0 (a), process 1 (b), process 3 (d), but 0.11.0 on process 2 (c)",
        "  new: absent on process 0 (a), process 1 (b), process 3 (d), but 1 on process 2 (c)",
    ]
    assert processes.differences(names[:2], [{"batch_size": "256"}] * 2) == []


def test_differences_name_the_first_four_processes():
    facts = [{"x": "0"}, *([{"x": "1"}] * 5)]
    assert processes.differences(list("abcdef"), facts) == ["  x: 0 on a, but 1 on b, c, d, e, ..."]


def test_the_digest_changes_with_a_line_of_source(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "pool.py").write_text("x = 1\n")
    before = startup.source_digest(tmp_path)
    assert len(before) == 12
    (tmp_path / "notes.txt").write_text("no source")
    assert startup.source_digest(tmp_path) == before
    (tmp_path / "ops" / "pool.py").write_text("x = 2\n")
    changed = startup.source_digest(tmp_path)
    (tmp_path / "ops" / "pool.py").rename(tmp_path / "pool.py")
    assert len({before, changed, startup.source_digest(tmp_path), startup.source_digest()}) == 4


# ------------------------------------------------------------------------------------------------- Real processes


def said(process, status):
    """What a process said, on one line, without what Gloo has to say."""
    output = tiny.finish(process, status)
    assert "Traceback" not in output
    return " ".join(" ".join(line for line in output.splitlines() if not line.startswith("[Gloo]")).split())


@pytest.mark.slow
def test_id_beyond_the_number_of_processes(tmp_path):
    message = said(tiny.start(tmp_path / "run", **tiny.part(tiny.free_address(), 2, 2)), 2)
    for words in ("process_id=2, num_processes=2", "--process_id", "JAX_PROCESS_ID", "[0, P)"):
        assert words in message


@pytest.mark.slow
def test_processes_that_are_not_alike(tmp_path):
    """Another config, another version of a package, another directory; told apart before anything is written."""
    metadata = tmp_path / "other" / "flax-99.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: flax\nVersion: 99\n")
    address = tiny.free_address()
    both = [
        tiny.start(tmp_path / "run", **tiny.part(address, 2, 0)),
        tiny.start(
            tmp_path / "elsewhere",
            "--config.batch_size=64",
            PYTHONPATH=f"{tmp_path / 'other'}:{tiny.ROOT}",
            **tiny.part(address, 2, 1),
        ),
    ]
    for process in both:
        message = said(process, 2)
        assert message.startswith("error: the processes of this run are not alike: --workdir: ")
        assert f"--workdir: {tmp_path / 'run'} on process 0 (" in message
        assert f"but {tmp_path / 'elsewhere'} on process 1 (" in message
        assert " batch_size: 32 on process 0 (" in message
        assert "but 64 on process 1 (" in message
        assert " version of flax: " in message
        assert "but 99 on process 1 (" in message
        assert message.count(", but ") == 3
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_processes_with_other_images(tmp_path):
    """Each host with a disk of its own, one of them copied half: told before anything is written."""
    for host, count in (("0", 20), ("1", 19)):
        write_folders(tmp_path / host, "train", {"ant": 20, "bee": count})
        write_folders(tmp_path / host, "val", {"ant": 4, "bee": 4})
    data = ("--config.data.name=folder", "--config.data.dir=~", "--config.data.crop=resize")
    address = tiny.free_address()
    both = [
        tiny.start(tmp_path / "run", *data, HOME=str(tmp_path / str(process)), **tiny.part(address, 2, process))
        for process in range(2)
    ]
    for process in both:
        assert (
            "error: the data of process 1 is not that of process 0: 39 train and 8 validation images there, 40 and 8 "
            "here. All hosts need the same files in data.dir"
        ) in said(process, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_other_numbers_of_devices(tmp_path):
    address = tiny.free_address()
    both = [
        tiny.start(tmp_path / "run", **tiny.part(address, 2, process), JAX_NUM_CPU_DEVICES=str(1 + process))
        for process in range(2)
    ]
    for process in both:
        assert " number of devices: 1 on process 0, but 2 on process 1" in said(process, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_absent_process_ends_the_others_in_time(tmp_path):
    process = tiny.start(tmp_path / "run", "--join_timeout_s=18", **tiny.part(tiny.free_address(), 2, 0))
    output = tiny.finish(process, -signal.SIGABRT)
    assert "waiting up to 18 s (--join_timeout_s) for all processes" in output
    assert not (tmp_path / "run").exists()


def both_in_training(workdir, address, **environment):
    """Two processes without an end, when they have saved a checkpoint."""
    both = [tiny.start(workdir, *ENDLESS, **tiny.part(address, 2, process), **environment) for process in range(2)]
    until_s = time.monotonic() + 250
    while not (workdir / "checkpoints" / "5").exists():
        assert time.monotonic() < until_s
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.1)
    return both


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_other_and_both_resume(tmp_path, victim):
    """Behind a proxy that is not there, which must not matter."""
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    both = both_in_training(tmp_path, tiny.free_address(), **proxy)
    killed_s = time.monotonic()
    both[victim].send_signal(signal.SIGKILL)
    output, _ = both[1 - victim].communicate(timeout=60)
    assert time.monotonic() - killed_s < 30
    assert both[1 - victim].returncode not in (0, 2), output
    tiny.finish(both[victim], -signal.SIGKILL)
    if victim == 0:  # once is enough for the rest
        return

    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    address, steps = tiny.free_address(), f"--config.num_steps={newest + 2}"
    again = [tiny.start(tmp_path, steps, **tiny.part(address, 2, process), **proxy) for process in range(2)]
    outputs = [said(process, 0) for process in again]
    assert f"resuming {tmp_path} at step {newest:,} of {newest + 2:,}" in outputs[0]
    assert outputs[1] == ""
    (beat,) = json.loads((tmp_path / "heartbeats.json").read_text())["processes"]
    assert beat.keys() == {"process", "host", "step", "time"}


@pytest.mark.slow
def test_error_of_one_process_has_its_status_and_ends_the_other(tmp_path):
    """A mistake that only the primary process meets, in the middle of training: its lock was taken over."""
    both = both_in_training(tmp_path, tiny.free_address())
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 7, "host": "other", "token": "theirs"}))
    assert "another run is at work in" in said(both[0], 2)
    output, _ = both[1].communicate(timeout=60)
    assert both[1].returncode not in (0, 2), output
