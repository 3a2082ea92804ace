"""Files with a run's state: written whole or not at all, checked when they are read."""
