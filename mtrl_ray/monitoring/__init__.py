"""Monitoring of a run: metrics on disk and on dashboards, the live table, the report page, the conversation viewer."""
