"""Dialogue environments, their simulated users (scripted, LLM) and scripted agents; `envs.registry.make` builds one."""
