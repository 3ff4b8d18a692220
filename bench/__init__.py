"""Measurements: each module is a command that shows, on the machine at hand, what the project claims."""
