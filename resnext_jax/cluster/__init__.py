"""The processes of one run: found, brought together, compared, and watched until the last of them has left.

Process 0 is the hub: every process holds one TCP connection to it, from before JAX starts to the very end. What one
process is told, all are told, so that all end with the same message. A lone process has none of this.
"""

from resnext_jax.cluster.roll_call import source_digest as source_digest
from resnext_jax.cluster.run import beat as beat
from resnext_jax.cluster.run import failed as failed
from resnext_jax.cluster.run import join as join
from resnext_jax.cluster.run import leave as leave
