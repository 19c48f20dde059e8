"""One party's process: it connects, agrees, runs the plan and reports."""
