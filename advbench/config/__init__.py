"""The configuration of a run: options, files, their resolution, and the run's identity."""
