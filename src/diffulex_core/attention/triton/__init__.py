"""`triton`: attention over pages by interval in two kernels, for CUDA devices. Imported on use."""
