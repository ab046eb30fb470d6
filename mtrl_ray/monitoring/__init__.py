"""What a run shows: metrics on disk and on dashboards, the live table, the report page, the conversation viewer."""
