"""cluster/find.py: whose part in which run, from flags and environments as launchers leave them."""

import pytest
from jax._src.clusters import cloud_tpu_cluster, cluster

from resnext_jax.cluster.find import Part, find_part
from resnext_jax.errors import UserError

LAUNCHERS = ("JAX_COORD", "JAX_NUM_PROC", "JAX_PROC", "JAX_LOCAL", "SLURM_", "OMPI_", "PMI_", "KUBERNETES_", "JOB_COMP")
# As `srun` leaves it in task 5 of a job of two nodes with four tasks each.
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
# 1234567 = 301 x 4096 + 1671, and JAX takes one of the last 4096 ports by that rest.
SLURM_PORT = 65535 - 4096 + 1 + 1671


@pytest.fixture
def found(monkeypatch):
    """`find_part` with no other launcher's variables than those given."""

    def find(environment, *flags):
        for name in list(__import__("os").environ):
            if name.startswith(LAUNCHERS):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return find_part(*flags, timeout_s=1)

    return find


def test_a_lone_process_has_nothing_to_join(found):
    assert found({}) is None
    assert found({}, None, 1, None) is None
    assert found({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


def test_variables_and_flags_which_win(found):
    variables = {"JAX_COORDINATOR_ADDRESS": "[fe80::1]:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
    assert found(variables) == Part("fe80::1", 1234, 3, 2)
    assert found(variables, "b:99", 4, 0) == Part("b", 99, 4, 0)
    assert found(variables, None, 1, None) is None


def test_slurm(found):
    assert found(SLURM) == Part("node001", SLURM_PORT, 8, 5, [1])
    assert found({**SLURM, "JAX_LOCAL_DEVICE_IDS": "2,3"}) == Part("node001", SLURM_PORT, 8, 5, [2, 3])
    assert found(SLURM, "10.0.0.1:99") == Part("10.0.0.1", 99, 8, 5, [1])


def test_slurm_with_one_task_per_node_has_all_its_gpus(found):
    two = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert found({**SLURM, **two, "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}).local_device_ids is None


def test_slurm_task_that_sees_one_gpu_has_that_one(found):
    assert found({**SLURM, "CUDA_VISIBLE_DEVICES": "3"}).local_device_ids is None
    assert found({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_device_ids == [1]


def test_interactive_slurm_step_waits_for_nobody(found):
    """In the shell of `salloc --ntasks=8` there is one task, while the job's variables speak of eight."""
    assert found({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None
    assert found({**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    batch_script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert found(batch_script) is None


def test_open_mpi(found):
    variables = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }
    # 1531576320 / 4096 = 373920 = 91 x 4096 + 1184
    assert found(variables) == Part("10.96.0.1", 65535 - 4096 + 1 + 1184, 2, 1, [1])
    assert found({**variables, **SLURM, "SLURM_STEP_NUM_TASKS": "1"}).num_processes == 2  # mpirun within salloc


@pytest.mark.parametrize("slices", [1, 2])
def test_tpu_pod_and_multislice(found, monkeypatch, slices):
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    part = found(
        {
            "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2",
            "TPU_WORKER_ID": "1",
            "MEGASCALE_NUM_SLICES": str(slices) if slices > 1 else "",
            "MEGASCALE_SLICE_ID": "1" if slices > 1 else "",
            "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.9:8080" if slices > 1 else "",
        }
    )
    assert part == (Part("127.0.0.9", 8482, 4, 3) if slices > 1 else Part("127.0.0.1", 8482, 2, 1))


def test_tpu_of_one_host_is_alone(found, monkeypatch):
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    megascale = {f"MEGASCALE_{name}": "" for name in ("NUM_SLICES", "SLICE_ID", "COORDINATOR_ADDRESS")}
    assert found({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", **megascale}) is None


@pytest.mark.parametrize(
    ("variables", "flags", "phrases"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, (), ["JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not", "--process_id"]),
        ({}, ("a:1", 2, None), ["JAX_PROCESS_ID is not"]),
        ({}, ("a:1", 2, 2), ["JAX_NUM_PROCESSES='2' and JAX_PROCESS_ID='2'", "in [0, P)"]),
        ({}, ("a:1", 2, -1), ["JAX_PROCESS_ID='-1'"]),
        ({}, ("a:1", 0, 0), ["JAX_NUM_PROCESSES='0'"]),
        ({"JAX_NUM_PROCESSES": "two"}, ("a:1", None, 0), ["JAX_NUM_PROCESSES='two'"]),
        ({}, ("a", 2, 0), ["address 'a' must be HOST:PORT"]),
        ({}, ("a:99999", 2, 3), ["address 'a:99999'", "from 1 to 65535", "JAX_PROCESS_ID='3'"]),
        ({**SLURM, "SLURM_PROCID": "x"}, (), ["could not be found from the environment", "'x'", "--num_processes=1"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (), ["OMPI_COMM_WORLD_SIZE=2", "--process_id=$OMPI_COMM_WORLD_RANK"]),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "h"}, (), ["pip install kubernetes"]),
    ],
)
def test_refused_with_an_instruction(found, variables, flags, phrases):
    with pytest.raises(UserError) as error:
        found(variables, *flags)
    assert all(phrase in str(error.value) for phrase in phrases), error.value
