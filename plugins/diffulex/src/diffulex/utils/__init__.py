"""Public addresses of the core's checkpoint, loader, output, registry and tokenizer modules."""
