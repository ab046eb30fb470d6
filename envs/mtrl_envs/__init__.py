"""Dialogue environments, their simulated users (scripted, LLM) and scripted agents; `mtrl_envs.registry.make` builds one."""
