"""The laboratory: trainings, the oracle, benchmarks, tables and ablations. Not part of the installed package."""
