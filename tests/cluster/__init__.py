"""Several nodes in network namespaces of this machine, around one Redis over TLS."""
