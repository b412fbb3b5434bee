"""What of an audit follows from stored outcomes, so that no model is needed to see whether a record fits."""
