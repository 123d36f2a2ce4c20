"""Results in an object store: a real S3 server on loopback, and a proxy before it that fails."""
