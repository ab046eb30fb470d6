"""The system as an algorithm sees it: the actors of one run and their operations."""
