"""Several nodes of this machine: in network namespaces around a Redis with TLS; under load."""
