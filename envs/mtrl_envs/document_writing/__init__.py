"""Document writing: a user has a target document in mind and describes it if asked."""
