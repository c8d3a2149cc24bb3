"""Small diffusion language models trained by this project, and how they were trained."""

__version__ = "0.1.0"
