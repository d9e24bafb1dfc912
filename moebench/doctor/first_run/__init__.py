"""The first run on a GPU: steps with time limits, one page of verdicts, one archive of records."""
