"""Rounds over several devices."""
