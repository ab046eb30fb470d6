"""Education Dialogue: a teacher with a student whose learning preference is hidden."""
