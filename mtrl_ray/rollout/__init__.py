"""Rollouts: engines that sample, the dialogue loop around an engine, the worker actor, the fleet of workers."""
