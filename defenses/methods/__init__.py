"""The defenses, one file each; a new file here is found without any list."""
