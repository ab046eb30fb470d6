"""Conversations held: engines that sample, the dialogue loop around one engine, the worker actor, the fleet of workers."""
