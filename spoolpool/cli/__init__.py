"""The commands ``spool`` and ``spool-worker``, one file for each subcommand, which is imported when it is used.

A *selection* is the set of tasks that the arguments of a command name. The other files are shared by commands: printing
and errors (``output``), the options of batch jobs and of workers, and the screen of ``spool status`` and ``spool top``.

This room may import every other one, and no other room imports it. Only this room uses click.
"""
