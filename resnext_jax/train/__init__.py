"""Training: the state, the step (pure), and the loop (the story)."""
