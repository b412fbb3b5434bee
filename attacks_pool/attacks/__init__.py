"""One module per attack; a new module in this folder is registered automatically."""
