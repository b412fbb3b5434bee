"""What a run is asked to do: options, files, their resolution, and the identity that follows."""
