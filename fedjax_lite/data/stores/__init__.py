"""Populations on disk, read client by client."""
