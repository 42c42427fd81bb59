"""The host loop: many rounds, their history on disk, and what happens when a run is killed."""
