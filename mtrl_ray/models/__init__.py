"""Models: the policy and its log-probabilities, value models on the same decoder, the tiny default model."""
