"""The learner: tables in, better models out.

1. `operation.py` says what a learning operation is; each file of `methods/` holds one with its settings, or a few that share a
   model. `Learner`, `LearnerGroup` and `System` carry operations and list none: an algorithm of another package brings its own.
2. `compute/` is what operations are written with: models by name, passes over rows, epochs, optimisers, sums over processes.
3. `rows/` turns Arrow tables into arrays, arrays into rows, rows into micro-batches.
"""
