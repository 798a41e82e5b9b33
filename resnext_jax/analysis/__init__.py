"""What the networks cost: counted, compiled ahead of time, measured. Nothing else depends on this room."""
