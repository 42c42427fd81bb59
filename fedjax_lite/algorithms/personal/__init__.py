"""Methods in which clients keep parts of the model."""
