"""What is added to a loss."""
