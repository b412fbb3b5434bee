"""The parts of an audit that follow from stored outcomes, which check a record without running its model."""
