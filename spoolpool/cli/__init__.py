"""The commands ``spool`` and ``spool-worker``. Only this package uses click."""
