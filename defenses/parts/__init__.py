"""Parts that several defenses are made of."""
