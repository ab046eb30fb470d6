"""The exact games in which the theorems behind the algorithms are checked: small, float64, numpy alone.

1. A game is finite: contexts, turns, states, actions, and a preference between finished conversations or a reward. A
   batch of games of one shape is one set of arrays; loops go over turns and iterations, never over games or conversations.
2. `mdp` says what a process and a policy are, `games` draws random ones, `values` evaluates them by recursion,
   `trajectories` by enumeration, `updates` has the algorithms' iterations, `equilibrium` the Nash equilibrium.
   `discounted` is the setting of Iterative PPO, `monte_carlo` its regression, `reward_model` that of RLHF, `implicit_prm`
   that of ITPO.
3. `checks` states the theorems as functions of a seed and a number of games; `mtrl theory` runs them.
4. Nothing here knows of the rest of the system.
"""
