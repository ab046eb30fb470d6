"""Where a run executes: a local Ray, a running cluster, or a job submitted to a cluster."""
