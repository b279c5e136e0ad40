#!/bin/bash
#PBS -N spool-worker
#PBS -l select=1:ncpus=32:mpiprocs=32
#PBS -l walltime=04:00:00

# PBS has no launcher of its own here: mpiexec starts the groups, on this node. Submit one job per node.
# --max-time: the walltime, in seconds, which nothing tells spool-worker under PBS.
exec spool-worker /shared/project/spool --launcher mpiexec --ranks 8 --groups 4 --max-time 14400
