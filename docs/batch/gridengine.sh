#!/bin/bash
#$ -N spool-worker
#$ -S /bin/bash
#$ -pe mpi 64
#$ -l h_rt=4:00:00
#$ -notify
#$ -V
#$ -cwd
#$ -j y

# groups of 8 ranks fill the nodes; -notify gives them time when the job is deleted
exec spool-worker /shared/project/spool --ranks 8
