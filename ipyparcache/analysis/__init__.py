"""Source text in, facts out: no IPython, no live objects."""
