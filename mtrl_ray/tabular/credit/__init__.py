"""What crediting turns is worth, in a task where the exact credit is known: the deciding experiment for process rewards.

1. `task` is a conversation of independent turns: in each a question of some type is asked, and one of the answers is right. The
   outcome is the share of right answers, or a draw with that probability. A softmax policy with a logit for each type and
   answer is shared by all turns, as a network is.
2. `schemes` turns the outcomes of a batch into advantages of turns: shared, exact, from values, from an implicit process
   reward model.
3. `learning` trains a policy by the clipped surrogate with each scheme, for several step sizes and seeds at once. Seeds see
   the same questions and the same random numbers under every scheme, so differences are paired.
4. `report` compares areas under the learning curves. `mtrl credit` runs it.
"""
