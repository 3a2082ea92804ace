"""The frame: what trains, saves and checks behind base/ and trainer/. Nobody has to open it in
order to train.

Each folder is a room with one subject. Arrows of imports point only downward:
errors, seed, batch, compare <- processes <- checkpoint <- config, data, step <- run <- use.
(tests/test_architecture.py holds that.)
"""
