"""Exact games that check the theorems behind the algorithms: small, float64, numpy only.

1. A game is finite: contexts, turns, states, actions, and a preference between finished conversations or a reward. A
   batch of games of one shape is one set of arrays; loops go over turns and iterations, never over games or conversations.
2. `mdp` defines processes and policies, `games` draws random ones, `values` evaluates them by recursion, `trajectories`
   by enumeration. `updates` has one iteration of each algorithm, `equilibrium` computes the Nash equilibrium.
   `discounted` is the setting of Iterative PPO, `monte_carlo` its regression, `reward_model` the reward model of RLHF,
   `implicit_prm` that of ITPO.
3. `checks` states the theorems as functions of a seed and a number of games; `mtrl theory` runs them.
4. `credit` trains softmax policies on conversations of independent turns, with exact and learned credit; `mtrl credit` runs it.
5. This package does not depend on the rest of the system; `credit` takes its intervals from `statistics`.
"""
