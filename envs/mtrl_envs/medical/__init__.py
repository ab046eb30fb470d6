"""Medical recommendation: a patient's complaint, a diagnosis and advice."""
