"""Calling a model from an attack: input checks, logits, restoring the model, reproducible randomness."""
