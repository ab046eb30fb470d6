"""Speed, as ratios within one run: rollout against the raw engine, the learner against the bare model."""
