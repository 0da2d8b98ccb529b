"""Does it matter whether an optimizer's state is kept or thrown away between training sessions?

A folder per stage, joined by files only: ``data`` (archive to arrays), ``training`` (arrays to
sessions), ``analysis`` (sessions to tables, figures and report).
"""

UNINTERRUPTED = "uninterrupted"  # in place of a boundary: one session of all epochs
