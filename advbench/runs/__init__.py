"""A run on disk: its directory, checkpoint, record and pictures, and reading it back."""
