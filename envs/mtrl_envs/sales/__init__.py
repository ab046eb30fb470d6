"""Sales: a clerk finds out what a customer wants before it offers something."""
