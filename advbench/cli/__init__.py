"""The command line. Nothing here loads torch before a command needs it."""
