"""Models: the policy and how it is read, value models on the same decoder, the tiny default model."""
