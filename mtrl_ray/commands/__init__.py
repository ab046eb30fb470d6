"""The commands of `mtrl`, one module each.

1. A module has `register(app)`, which adds its command (or its sub-app) to the typer app, and a line in `cli.COMMANDS`.
2. Whatever takes time to import (torch, ray, vLLM, transformers, matplotlib) is imported inside the command's body, so
   that `mtrl --help` answers at once.
3. A command raises the errors of `mtrl_ray.errors`; `cli.main` turns them into a sentence and an exit code.
"""
