"""The data types shared by all parts: conversations, responses, and the tokens of histories."""
