"""Measured figures put into README, docs and the model card."""
