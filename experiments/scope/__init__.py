"""The embedded model's scope rule, fitted and measured: `python -m experiments.scope`."""
