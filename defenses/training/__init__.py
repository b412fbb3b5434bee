"""Training of a defense: the loop over batches, stages, plans, snapshots and model selection."""
