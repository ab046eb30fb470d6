"""What passes between everybody: conversations, responses, and how histories become tokens."""
