"""Redis: key schema, Lua hand-offs, messages and their codec, clients, the private server."""
