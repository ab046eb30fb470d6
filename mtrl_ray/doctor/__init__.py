"""What this machine has, what does not fit, and what to do (`mtrl doctor`)."""
