"""What scripted users share: understanding free text, telling what they know, contexts and their splits."""
