"""Evaluation: from a checkpoint to numbers, exact, and the same for trained and converted weights."""
