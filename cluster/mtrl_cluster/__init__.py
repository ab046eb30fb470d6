"""Where a run takes place: a Ray on this machine, a running cluster, a job submitted to one."""
