"""Processes that train: how they are started, meet, are watched, and are stopped. Knows nothing of what they train."""
