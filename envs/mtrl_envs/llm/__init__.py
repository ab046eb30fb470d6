"""Users and judges played by a language model behind an OpenAI-compatible endpoint."""
