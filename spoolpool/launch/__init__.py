"""Start of worker groups, without knowledge of the spool.

A *group* is a set of MPI *ranks*, processes that run one task at a time together; a group of one rank needs no MPI. A
*launcher* starts the ranks of a group: as plain processes, by mpiexec, by srun or as a job of Flux. An *allocation* is
the set of nodes, cores and GPUs that a batch system has given to the job around this process. The *relay* is a process
that labels the output of groups.

This room does not import ``protocol``, ``format`` or any other room that knows a spool: a launcher names the worker by
its module and passes arguments and environment variables on unread.
"""
