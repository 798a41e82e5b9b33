"""`main.py` with one call that never returns, for a test to find the process there.

STUCK=compile, or evaluation: in C, where no Python handler of a signal runs; input: in the thread that fills the batch
of step 8. It says so when the main thread is there.
"""

import ctypes
import os
import sys
import threading

import jax

import main
from resnext_jax import cli
from resnext_jax.data import pipeline
from resnext_jax.evaluate import validation
from resnext_jax.runtime import preemption

NAME = os.environ["STUCK"]
INPUT_STEP = 8


def say() -> None:
    print(f"stuck in {NAME}", flush=True)


def hang_in_c(*args: object, **kwargs: object) -> None:
    say()
    mutex = ctypes.create_string_buffer(256)
    for _ in range(2):  # a mutex that this very thread holds
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def fill(batch, source, indices):
    fill.calls += 1
    if fill.calls >= INPUT_STEP:
        threading.Event().wait()
    return original_fill(batch, source, indices)


def take(self, batches, step):
    if step == INPUT_STEP:
        say()
    return original_take(self, batches, step)


fill.calls = 0
original_fill, original_take = pipeline._gather, preemption.Preemption.take
if NAME == "compile":
    jax.stages.Lowered.compile = hang_in_c  # pyright: ignore[reportAttributeAccessIssue]
elif NAME == "evaluation":
    validation.evaluate = hang_in_c
elif NAME == "input":
    pipeline._gather, preemption.Preemption.take = fill, take
cli.main(main.define_flags(cli.flags.FLAGS), sys.argv)
