#!/bin/bash
#BSUB -J spool-worker
#BSUB -n 32
#BSUB -R "span[hosts=1]"
#BSUB -W 4:00

# LSF has no launcher of its own here: mpiexec starts the groups, on this host. Submit one job per host.
exec spool-worker /shared/project/spool --launcher mpiexec --ranks 8 --groups 4 --max-time 14400
