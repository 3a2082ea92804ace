"""From a dataset to batches: which samples come when, who reads them, what they are."""
