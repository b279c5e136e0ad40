#!/bin/bash
#BSUB -J spool-worker
#BSUB -n 64
#BSUB -R "span[ptile=32]"
#BSUB -W 4:00

# groups of 8 ranks fill both hosts; they end before the run limit does
exec spool-worker /shared/project/spool --ranks 8
