"""Checkpoints, written asynchronously and atomically, and read strictly. Only this package imports orbax.

A checkpoint `DIR/STEP/` has three items and their checksums:
- `variables`: params and batch_stats, which is all that a prediction needs, and their averages `ema` if there are any;
- `training`: the step and the optimizer state;
- `config`: JSON with the resolved config, the data set, and the sums since the last row of metrics;
- `checksums.json`: size and CRC-32 of every file.

Orbax writes to a temporary directory and renames it when it is complete (in a bucket it writes a last file), so an
unfinished save is never read.
"""

from resnext_jax.checkpoint.arrays import by_path as by_path
from resnext_jax.checkpoint.arrays import first_lines as first_lines
from resnext_jax.checkpoint.arrays import mismatches as mismatches
from resnext_jax.checkpoint.arrays import require_same_arrays as require_same_arrays
from resnext_jax.checkpoint.checksums import damage as damage
from resnext_jax.checkpoint.read import MODEL as MODEL
from resnext_jax.checkpoint.read import NETWORK as NETWORK
from resnext_jax.checkpoint.read import locate as locate
from resnext_jax.checkpoint.read import read_arrays as read_arrays
from resnext_jax.checkpoint.read import read_description as read_description
from resnext_jax.checkpoint.read import read_variables as read_variables
from resnext_jax.checkpoint.run import Checkpoints as Checkpoints
from resnext_jax.checkpoint.run import newest_sound as newest_sound
from resnext_jax.checkpoint.store import DIRECTORY as DIRECTORY
from resnext_jax.checkpoint.store import absolute as absolute
from resnext_jax.checkpoint.store import finished_steps as finished_steps
