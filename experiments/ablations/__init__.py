"""Settings that were tried on the tuning queries."""
