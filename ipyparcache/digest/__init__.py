"""Live objects in, short names out."""
