"""Several processes that train together: how they start, and what they share."""
