"""What a stranger does with the scaffold and with the wheels."""
