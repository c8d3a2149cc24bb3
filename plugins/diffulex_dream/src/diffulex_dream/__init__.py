"""Dream, Dream-Coder, DiffuCoder and DreamReasoner for diffulex."""
