"""Unlearning one group from a model, as an adapter."""
