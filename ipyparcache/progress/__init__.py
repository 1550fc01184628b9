"""Counts in, something to look at out."""
