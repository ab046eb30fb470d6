"""Start actors, wait for them, and handle their loss."""
