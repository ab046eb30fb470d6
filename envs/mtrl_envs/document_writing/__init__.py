"""Document writing: a user knows which document it wants and says so when asked."""
