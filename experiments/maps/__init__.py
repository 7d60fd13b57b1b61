"""Do maps point at the right place, and do strips name the right group: measured."""
