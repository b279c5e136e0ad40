"""Worker groups: the processes that claim tasks from a spool, run them and publish their outcomes.

A *worker group* is a set of *ranks*, processes that run one task at a time together; a group of one rank needs no MPI.
*Rank 0* has the loop: it claims a task, gives its call to the group, and publishes the outcome; the other ranks run the
calls that it sends. The *execution* of a claim is everything between the claim and the commit of its outcome;
*housekeeping* is the work beside the tasks: heartbeat, recovery, delayed tasks, journal. A *subtask* is submitted by a
running task, which runs it itself while it waits for it. The *capture* writes the output of tasks to the log of their
rank. The *communicator cleaner* removes the messages that a function left in the communicator of the group; a group
that may still contain such a message or a damaged state is *tainted*, and its supervisor replaces it. A *renewal* is
the replacement of a group in which tasks have left threads or processes.

This room imports ``protocol`` and the rooms below it. It does not import ``client``, ``pool`` and ``launch``: the
submission of tasks and the start of ranks make no difference to a worker.
"""
