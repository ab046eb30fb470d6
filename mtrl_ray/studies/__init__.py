"""Studies: grids of runs, from a definition in YAML to a table with intervals, figures and the commands that produce it."""
