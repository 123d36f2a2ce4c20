"""The service: configuration, supervisor, job client, command line. Knows nothing of tensors."""
