"""Environment variables of processes that are started."""

from __future__ import annotations

from collections.abc import Mapping

_INHERITED = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "MPIR_", "HYDRA_", "HYDI_", "MPICH_INTERFACE", "PALS_", "FLUX_PMI")


def without_mpi(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a surrounding MPI left in it for its own ranks."""
    return {
        key: value
        for key, value in variables.items()
        if not key.startswith(_INHERITED) or key.startswith(("OMPI_ALLOW", "OMPI_MCA_"))
    }
