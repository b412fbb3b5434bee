"""Certificates: proofs that no image in a ball is classified otherwise, and randomised smoothing."""
