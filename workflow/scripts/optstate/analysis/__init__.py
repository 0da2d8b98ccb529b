"""From sessions to tables, figures and the report."""
