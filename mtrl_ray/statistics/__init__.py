"""What a handful of numbers says, and how sure it is. Pure functions of numbers."""
