"""What surrounds the epochs.

Measuring, judging, stopping, resuming, the run's folder and console.
"""
