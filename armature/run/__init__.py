"""What surrounds the epochs: measuring, judging, stopping, resuming, the run's folder and console."""
