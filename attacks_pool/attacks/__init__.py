"""One file per attack; a new one is found by itself."""
