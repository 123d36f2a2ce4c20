"""Pure functions and file formats: knows nothing of processes, Redis or configuration files."""

__version__ = "0.1.0"
