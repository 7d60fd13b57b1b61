"""The oracle from several seeds, trained on a GPU in minutes: `python -m experiments.seeds`."""
