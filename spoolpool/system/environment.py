"""Environment of child processes."""

from __future__ import annotations

from collections.abc import Mapping

_INHERITED = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "MPIR_", "HYDRA_", "HYDI_", "MPICH_INTERFACE", "PALS_", "FLUX_PMI")


def without_mpi(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that a surrounding MPI sets for its own ranks."""
    return {
        key: value
        for key, value in variables.items()
        if not key.startswith(_INHERITED) or key.startswith(("OMPI_ALLOW", "OMPI_MCA_"))
    }
