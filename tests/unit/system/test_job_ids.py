"""Ids of batch jobs as people type them."""

from __future__ import annotations

import pytest

from spoolpool.system.job_ids import base_id, elements, flux_number, is_component, job_id, select, without_limit

FLUX = ("fMM79KV", "ƒMM79KV", "13354663936", "0x31c000000", "0000.0003.1c00.0000", "job.0000.0003.1c00.0000")


def test_job_around_a_process_has_the_id_that_lists_show():
    assert job_id({}) == ""
    assert job_id({"SLURM_JOB_ID": "7"}) == "7"
    assert job_id({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "2"}) == "6_2"
    assert job_id({"SLURM_JOB_ID": "3", "SLURM_JOB_ID_HET_GROUP_0": "3", "SLURM_JOB_ID_HET_GROUP_1": "4"}) == "3"
    assert job_id({"FLUX_ENCLOSING_ID": "ƒMM79KV", "FLUX_JOB_ID": "ƒ1"}) == "fMM79KV"
    assert job_id({"FLUX_ENCLOSING_ID": "ƒMM79KV", "SLURM_JOB_ID": "7"}) == "7", "an instance within a job of Slurm"


@pytest.mark.parametrize(
    ("typed", "listed", "selected"),
    [
        ("7", "7", {"7"}),
        ("7", "17", set()),
        ("6_2", "6_2", {"6_2"}),
        ("6", "6_2", {"6_2"}),
        ("6_2", "6", set()),
        ("6_4", "6_[3-5%2]", {"6_4"}),
        ("6_[2,4-9]", "6_[3-5%2]", {"6_4", "6_5"}),
        ("6_[3-5%2]", "6_[3-5%2]", {"6_3", "6_4", "6_5"}),
        ("6", "6_[0-9:3]", {"6_0", "6_3", "6_6", "6_9"}),
        ("6_1", "6_[0-9:3]", set()),
        ("16_4", "6_[3-5]", set()),
        ("3+1", "3+0", {"3+0"}),
        ("3+1", "3", {"3"}),
        ("3+1", "3_1", set()),
        ("3", "3+1", {"3+1"}),
        ("4", "3+1", set()),
        ("6_[0-99999999999]", "6_[3-5]", set()),
        ("6_[0-999999999]", "6_[3-5]", set()),
        ("6_[5-3]", "6_[3-5]", set()),
        ("6_[1-2:0]", "6_1", {"6_1"}),
        ("", "7", set()),
        ("_", "7", set()),
        ("123.server", "123.server", {"123.server"}),
        ("123", "123.server", {"123.server"}),
        ("123.other", "123.server", set()),
        ("12", "123.server", set()),
        ("7[2]", "7[2].server", {"7[2].server"}),
        ("7", "7[2].server", {"7[2].server"}),
        ("7[3]", "7[2].server", set()),
        ("7", "7.2", {"7.2"}),
        ("7.3", "7.2", set()),
        *((typed, "fMM79KV", {"fMM79KV"}) for typed in FLUX),
        ("fMM79KW", "fMM79KV", set()),
        ("MM79KV", "fMM79KV", set()),
        ("f", "fMM79KV", set()),
    ],
)
def test_typed_id_selects_parts_of_a_listed_job(typed: str, listed: str, selected: set[str]):
    assert select(typed, listed) == selected


def test_parts_of_ids():
    assert [base_id(each) for each in ("6_2", "6_[1-2]", "3+1", "7", "fABC")] == ["6", "6", "3", "7", "fABC"]
    assert without_limit("6_[1,3-5%2]") == "6_[1,3-5]"
    assert is_component("3+1") and not is_component("3") and not is_component("3_1")
    assert elements("6_[08-10]") == {"6_8", "6_9", "6_10"}


def test_spellings_of_flux_have_one_number():
    assert {flux_number(each) for each in FLUX} == {13354663936}
    assert [flux_number(each) for each in ("", "f", "ƒ", "f0", "node1", "0x", "1.2", "-1", "²")] == [None] * 9
