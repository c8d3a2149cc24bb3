"""What a GPU makes of the kernels and of whole steps, beside what its memory and its matrix units could do."""
