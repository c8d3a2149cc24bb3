"""The page at `/`, on which an answer is seen while it is denoised."""
