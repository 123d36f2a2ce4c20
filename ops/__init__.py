"""Pure functions and file formats: knows nothing of processes, Redis or configuration files."""
