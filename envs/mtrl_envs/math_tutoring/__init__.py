"""Math tutoring: a student's problem, solved together."""
