"""The benchmark: trains a defense and measures it, stage by stage."""
