"""What `peers.py` runs: a program for each system, and the parts that drive them."""
