"""From a trained model to its use: raw inputs to batches, outputs to answers."""
