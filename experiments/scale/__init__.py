"""How scoring scales past one machine: `python -m experiments.scale`."""
