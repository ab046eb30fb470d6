"""Pure functions of tensors: returns, advantages, turn rewards, losses.

1. A conversation is a turn-level decision process whose actions are whole responses, and each response is a token-level
   one: the state before agent turn h is everything said before it, `log π(a|s) = Σ_t log π(y_t | s, y_<t)`.
2. `returns` makes the regression targets of Q on turns, `advantages` says how much better an action was than expected
   (on tokens or on turns), `losses` turns advantages and targets into gradients.
3. Only tokens the policy sampled carry loss: a mask marks the agent's entries, and entries outside it are
   ignored.
4. These functions do not depend on a model, a process or a device. Every mean over a batch accepts its denominator or
   moments as an argument, so the result does not depend on the number of processes and micro-batches.
"""
