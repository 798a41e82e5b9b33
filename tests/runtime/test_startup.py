"""What a command says, and what it lets its libraries say."""

import os
import subprocess
import sys

import pytest
import tiny

PROGRAM = """
import asyncio, gc
from resnext_jax.runtime import startup

startup.quiet_logging()

async def write():
    raise ValueError("no space left")

def call():
    raise ValueError("no space left")

async def main():
    {what}
    await asyncio.sleep(0.01)

asyncio.run(main())
gc.collect()
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("asyncio.create_task(write())", False),  # as by orbax
        ("asyncio.get_running_loop().create_future().set_exception(ValueError('no space left'))", False),  # tensorstore
        ("asyncio.get_running_loop().call_soon(call)", True),
    ],
)
@pytest.mark.slow
def test_the_failed_writes_of_a_save_are_not_told_one_by_one(what, told):
    """Orbax raises the first; of the others, for which nobody asks, asyncio would log each with a traceback."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(what=what)],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ("no space left" in process.stderr) == told, process.stderr
    assert ("Traceback" in process.stderr) == told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unbuffered", "command"),
    [
        ("1", ("main.py", "--help")),
        ("", ("main.py", "--help")),
        ("1", ("experiments/table3_cardinality/run.py", "--scale=full")),
        ("", ("experiments/table3_cardinality/run.py", "--scale=full")),
        ("1", ("-m", "resnext_jax.analysis.complexity")),
        ("", ("-m", "resnext_jax.analysis.complexity")),
    ],
)
def test_output_that_nobody_reads_to_its_end(unbuffered, command):
    """As `| head -1`, whose end of the pipe is closed here from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, *command],
        cwd=tiny.ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")
