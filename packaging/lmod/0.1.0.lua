-- Module file for an installation by `python -m venv ROOT/0.1.0 && ROOT/0.1.0/bin/pip install 'spoolpool[site-mpi]'`.
help([[spoolpool 0.1.0: a queue of Python functions on a shared filesystem.
Commands: spool, spool-worker.]])
whatis("Name: spoolpool")
whatis("Version: 0.1.0")
whatis("Description: Queue of Python functions on a shared filesystem, served by MPI worker groups in batch jobs")

local root = "/opt/apps/spoolpool/0.1.0" -- the directory of the installation

conflict("spoolpool")
depends_on("openmpi") -- the MPI with which mpi4py was built
prepend_path("PATH", pathJoin(root, "bin"))
-- A site may set defaults for all users:
-- setenv("SPOOLPOOL_DIR", "/shared/project/spool")
