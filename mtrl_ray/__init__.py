"""mtrl-ray: train conversational LLM policies on what a whole conversation achieves."""

__version__ = "0.1.0"
