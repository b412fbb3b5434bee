"""The defenses, one module each; a new module in this folder is registered automatically."""
