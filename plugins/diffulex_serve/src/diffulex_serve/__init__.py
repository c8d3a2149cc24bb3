"""An OpenAI-compatible server that shows diffusion as it happens."""
