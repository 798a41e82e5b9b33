"""Training: the loop, the task that it trains, the step and the state."""
