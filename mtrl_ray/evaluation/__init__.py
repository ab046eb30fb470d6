"""How good a policy is: held-out evaluation and the statistics that say how sure we are."""
