"""`python -m mtrl_ray …`: the command line where its script is not on the path (inside a Ray job, for one)."""

from mtrl_ray.cli import main

main()
