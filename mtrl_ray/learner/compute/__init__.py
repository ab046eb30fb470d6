"""Forward and backward passes: the models, the optimiser steps, and how several processes share them."""
