"""Checkpoints: asynchronous, atomic, checked, strict. The only home of orbax.

A checkpoint `DIR/STEP/` holds three items and their checksums: `variables` (params and batch_stats: all that a model
needs to predict; and their averages, `ema`, where the run keeps any), `training` (step and optimizer state), `config`
(JSON: the resolved config, the data set, and how far the run was between two rows of its metrics) and `checksums.json`
(size and CRC-32 of every file). Orbax writes into a temporary directory and renames it when all is there (in a bucket:
marks it with a last file), so a save that did not finish is never seen.
"""

from resnext_jax.checkpoint.arrays import mismatches as mismatches
from resnext_jax.checkpoint.arrays import require_same_arrays as require_same_arrays
from resnext_jax.checkpoint.read import locate as locate
from resnext_jax.checkpoint.read import read_arrays as read_arrays
from resnext_jax.checkpoint.read import read_description as read_description
from resnext_jax.checkpoint.read import read_variables as read_variables
from resnext_jax.checkpoint.run import Checkpoints as Checkpoints
from resnext_jax.checkpoint.run import newest_sound as newest_sound
from resnext_jax.checkpoint.store import DIRECTORY as DIRECTORY
from resnext_jax.checkpoint.store import absolute as absolute
from resnext_jax.checkpoint.store import finished_steps as finished_steps
