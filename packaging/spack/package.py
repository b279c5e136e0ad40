"""Recipe for Spack: ``var/spack/repos/builtin/packages/py_spoolpool/package.py``."""

from spack.package import *


class PySpoolpool(PythonPackage):
    """Queue of Python functions on a shared filesystem, served by MPI worker groups in batch jobs."""

    pypi = "spoolpool/spoolpool-0.1.0.tar.gz"

    license("BSD-3-Clause")

    version("0.1.0", sha256="0000000000000000000000000000000000000000000000000000000000000000")

    variant("mpi", default=True, description="Functions on several ranks")
    variant("flux", default=False, description="Groups as jobs of Flux")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-hatchling@1.27:", type="build")
    depends_on("py-click@8.1:", type=("build", "run"))
    depends_on("py-cloudpickle@3:", type=("build", "run"))
    depends_on("py-filelock@3.30:", type=("build", "run"))
    depends_on("py-msgspec@0.19:", type=("build", "run"))
    depends_on("py-tomli@2:", type=("build", "run"), when="^python@:3.10")
    depends_on("py-watchdog@6:", type=("build", "run"))
    depends_on("py-xxhash@3.4:", type=("build", "run"))
    depends_on("py-mpi4py@3.1:", type=("build", "run"), when="+mpi")
    depends_on("flux-core+python", type=("build", "run"), when="+flux")
