"""How much memory unlearning takes: `python -m experiments.memory`."""
