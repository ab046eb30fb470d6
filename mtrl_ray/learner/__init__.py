"""The learner: tables in, better models out.

- `operation.py` says what a learning operation is; each file of `methods/` holds one with its settings, or a few that share a
  model. `LearnerGroup` and `System` run any operation: an algorithm of another package brings its own.
- `compute/` is what operations are written with: models by name, passes over rows, optimisers, sums over processes.
- `rows/` turns Arrow tables into arrays, arrays into rows, rows into minibatches.
"""
