"""One round and its wiring: what clients do, who is drawn, what the server makes of it."""
