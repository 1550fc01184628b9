"""The running notebook, without any policy."""
