"""From what an engine did to what a client sees: texts that stay, and the diffusion stream protocol."""
