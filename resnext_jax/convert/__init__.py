"""Weights of others to our checkpoints and back: `python -m resnext_jax.convert --help`. The only home of torch."""
