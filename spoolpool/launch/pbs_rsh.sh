#!/bin/sh
# pbs_rsh.sh [-option]... HOST COMMAND...: run a command on another node of a job of PBS, as rsh and ssh do, in a shell.
# pbs_tmrsh alone runs no shell, and takes none of the options that mpiexec gives to ssh.
while [ "${1#-}" != "$1" ]; do
    shift
done
host=$1
shift
exec pbs_tmrsh "$host" /bin/sh -c "$*"
