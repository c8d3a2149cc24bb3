"""Block-diffusion decoding strategies for diffulex: multi_bd and d2f."""
