"""The oracle: models retrained without each group."""
