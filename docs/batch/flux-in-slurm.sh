#!/bin/bash
#SBATCH --job-name=spool-worker
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --time=04:00:00

# One Flux instance over the whole job. --mpi=pmi2: without it, each node becomes an instance of its own.
srun --nodes=4 --ntasks=4 --mpi=pmi2 flux start \
    spool-worker /shared/project/spool --launcher flux --ranks 8 --threads 2
