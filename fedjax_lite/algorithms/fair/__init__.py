"""Fair to clients: methods under which the worst-off count more than their share of the data."""
