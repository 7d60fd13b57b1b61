"""Agreement with the oracle: fixed queries, every model's KL values at them, and the table made from those."""
