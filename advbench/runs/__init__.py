"""A run on disk: its directory, checkpoint, record, pictures, and the run read back."""
