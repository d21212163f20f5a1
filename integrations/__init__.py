"""Files that other programs load, so that they know this model."""
