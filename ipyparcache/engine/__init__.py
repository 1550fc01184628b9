"""Run tasks on workers; knows nothing of cells or caches."""
