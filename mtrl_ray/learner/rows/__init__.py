"""From tables to rows of tokens that a model can read: conversations, responses, packing, micro-batches."""
