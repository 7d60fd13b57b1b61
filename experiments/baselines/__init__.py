"""Baselines that need the training pictures, which the app does not have: methods that benchmarks compare with."""
