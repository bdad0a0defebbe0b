"""Pre-trained checkpoints: where they come from, what they say about themselves, and their weights."""
