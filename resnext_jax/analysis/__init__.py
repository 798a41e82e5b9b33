"""What the networks cost: counted, compiled ahead of time, measured. Only `api` and `cli` may import this package."""
