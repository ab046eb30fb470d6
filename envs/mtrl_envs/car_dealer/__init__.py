"""Car Dealer (LMRL-Gym): a seller negotiates with a buyer over one car."""
