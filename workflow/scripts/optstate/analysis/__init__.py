"""Turn sessions into tables, figures and the report."""
