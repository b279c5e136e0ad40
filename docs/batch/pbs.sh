#!/bin/bash
#PBS -N spool-worker
#PBS -l select=2:ncpus=32:mpiprocs=32
#PBS -l place=scatter:excl
#PBS -l walltime=04:00:00
#PBS -V
#PBS -j oe

cd "$PBS_O_WORKDIR" || exit
# groups of 8 ranks fill both nodes; they end before the walltime does
exec spool-worker /shared/project/spool --ranks 8
