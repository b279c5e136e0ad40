#!/bin/bash
#SBATCH --job-name=spool-worker
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append

# As many groups of 8 ranks with 2 threads each as fit; srun starts them. exec: the signal reaches the supervisor.
exec spool-worker /shared/project/spool --ranks 8 --threads 2
