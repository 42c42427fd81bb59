"""What mechanisms cost: accountants, losses, calibration, and the history of a state."""
