"""From records that may be compared to evidence: estimates, bounds and both p values. No levels, no verdicts, no files."""
