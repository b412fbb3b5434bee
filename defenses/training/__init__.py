"""How a defense is trained: the loop over batches, a stage, the plan, snapshots, selection."""
