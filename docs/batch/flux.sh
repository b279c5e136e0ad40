#!/bin/bash
# flux: --job-name=spool-worker
# flux: --nodes=4
# flux: --exclusive
# flux: --time-limit=4h

# As many groups of 8 ranks with 2 threads each as fit; they are jobs of the instance that this script runs in.
exec spool-worker /shared/project/spool --ranks 8 --threads 2
