"""Evaluation: exact, and the same for a trained and a converted checkpoint. Knows nothing of training."""
