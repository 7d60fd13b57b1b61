"""Trainings of the embedded model's parts, each a loss on one shared, seeded, resumable loop."""
