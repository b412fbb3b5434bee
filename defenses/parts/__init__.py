"""Building blocks that several defenses share."""
