"""The tables of results: published numbers as data, ours from files, one renderer for all."""
