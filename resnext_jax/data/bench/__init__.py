"""`python -m resnext_jax.data.bench`: images per second per core of the input, beside its peers; memory over a pass."""
