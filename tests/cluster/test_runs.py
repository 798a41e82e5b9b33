"""Several processes of one run, as their users meet them: absent, unlike each other, killed in a step, and well."""

import json
import signal
import time

import pytest
import tiny

from tests.data.archives import write_folders

AGAIN = "Run all processes again: training resumes at the newest checkpoint."
ENDLESS = ("--config.num_steps=100000", "--config.num_epochs=1000", "--config.evaluate.every_steps=100000")
LOST = 76


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a process of the tiny run; all have one compilation cache."""
    cache = tiny.compilation_cache(tmp_path_factory.mktemp("cache"))
    return lambda workdir, *overrides, **environment: tiny.start(workdir, *overrides, **cache, **environment)


def said(process, status):
    """What a process said, on one line, without what Gloo has to say."""
    output = tiny.finish(process, status)
    assert "Traceback" not in output
    return " ".join(" ".join(line for line in output.splitlines() if not line.startswith("[Gloo]")).split())


def test_absent_processes_are_named_by_those_who_came(start, tmp_path):
    address = tiny.free_address()
    limit = "--join_timeout_s=12"
    came = [start(tmp_path / "run", limit, **tiny.part(address, 3, process)) for process in (0, 2)]
    alone = start(tmp_path / "run", limit, **tiny.part(tiny.free_address(), 2, 1))
    for process in came:
        message = said(process, LOST)
        assert message.startswith(
            "error: process 1 of 3 did not come within 12 s (--join_timeout_s); here: process 0 ("
        )
        assert message.endswith(AGAIN)
    assert "error: process 0 did not answer at 127.0.0.1:" in said(alone, LOST)
    assert not (tmp_path / "run").exists()


def test_processes_that_are_not_alike(start, tmp_path):
    """Another config, another version of a package, another directory; told apart before anything is written."""
    metadata = tmp_path / "other" / "flax-99.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: flax\nVersion: 99\n")
    address = tiny.free_address()
    processes = [
        start(tmp_path / "run", **tiny.part(address, 2, 0)),
        start(
            tmp_path / "elsewhere",
            "--config.batch_size=64",
            PYTHONPATH=f"{tmp_path / 'other'}:{tiny.ROOT}",
            **tiny.part(address, 2, 1),
        ),
    ]
    for process in processes:
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


def test_processes_with_other_images(start, tmp_path):
    """Each host with a disk of its own, of which one was copied half: told before anything is written."""
    for host, count in (("0", 20), ("1", 19)):
        write_folders(tmp_path / host, "train", {"ant": 20, "bee": count})
        write_folders(tmp_path / host, "val", {"ant": 4, "bee": 4})
    data = ("--config.data.name=folder", "--config.data.dir=~", "--config.data.crop=resize")
    address = tiny.free_address()
    processes = [
        start(tmp_path / "run", *data, HOME=str(tmp_path / str(process)), **tiny.part(address, 2, process))
        for process in range(2)
    ]
    for process in processes:
        assert (
            "error: the data of process 1 is not that of process 0: 39 train and 8 validation images there, 40 and 8 "
            "here. All hosts need the same files in data.dir"
        ) in said(process, 2)
    assert not list((tmp_path / "run").iterdir())


def test_processes_with_other_numbers_of_devices(start, tmp_path):
    address = tiny.free_address()
    processes = [
        start(tmp_path / "run", **tiny.part(address, 2, process), JAX_NUM_CPU_DEVICES=str(1 + process))
        for process in range(2)
    ]
    for process in processes:
        assert " number of devices: 1 on process 0 (" in said(process, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_in_a_step_ends_the_other_and_a_restart_goes_on(start, tmp_path, victim):
    address = tiny.free_address()

    def both(*overrides):
        return [start(tmp_path, *overrides, **tiny.part(address, 2, process)) for process in range(2)]

    processes = both(*ENDLESS)
    until_s = time.monotonic() + 250
    while not (tmp_path / "checkpoints" / "5").exists():
        assert time.monotonic() < until_s
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    killed_s = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    message = said(processes[1 - victim], LOST)
    assert time.monotonic() - killed_s < 15  # a second or two; 60 are promised
    assert f"error: process {victim} (" in message
    assert ") is lost: its connection closed at " in message
    assert message.endswith(AGAIN)
    tiny.finish(processes[victim], -signal.SIGKILL)
    if victim == 0:  # once is enough for the rest
        return

    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    outputs = [said(process, 0) for process in both(f"--config.num_steps={newest + 2}")]
    assert f"resuming {tmp_path} at step {newest:,} of {newest + 2:,}" in outputs[0]
    assert outputs[1] == ""
    beats = json.loads((tmp_path / "heartbeats.json").read_text())["processes"]
    assert [beat.keys() for beat in beats] == [{"process", "host", "step", "time"}] * 2
    assert [beat["process"] for beat in beats] == [0, 1]


def test_one_that_is_interrupted_ends_the_other_and_is_not_lost(start, tmp_path):
    address = tiny.free_address()
    processes = [start(tmp_path, *ENDLESS, **tiny.part(address, 2, process)) for process in range(2)]
    until_s = time.monotonic() + 250
    while not (tmp_path / "checkpoints" / "5").exists():
        assert time.monotonic() < until_s
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGINT)
    assert "error: process 1 (" in (message := said(processes[0], 130))
    assert ") was interrupted; training resumes at its newest checkpoint when all run again." in message
    assert said(processes[1], 130).startswith("interrupted; training resumes")
