"""The commands ``spool`` and ``spool-worker``; click is used here and nowhere else."""
