"""`python -m resnext_jax.data.prepare`: from archives or folders to sharded ArrayRecord, once."""
