"""Several nodes of this machine: in network namespaces around one Redis over TLS, and under load."""
