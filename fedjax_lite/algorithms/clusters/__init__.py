"""Clusters: several models at the server, each trained by the clients that it fits best."""
