"""How an attack asks a model: batches, logits, the model left as it was, keyed randomness."""
