"""The learner: tables in, better models out."""
