"""The engine's side of the server: messages, the loop that owns an engine, and the clients that talk to one."""
