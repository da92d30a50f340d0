"""`spikeloom doctor` asks a real SLURM what its partition gives."""

from dataclasses import replace

import pytest

from launch.doctor_case import FAULT, OK, Case, DoctorConfig
from launch.doctor_cluster import cluster_room
from launch.submit_cluster import ClusterConfig

pytestmark = pytest.mark.slurm


def found(cluster: ClusterConfig) -> list:
    return cluster_room(Case(DoctorConfig(cluster=cluster)))


def test_a_partition_is_held_against_what_is_asked_of_it(cluster):
    whole = ClusterConfig(nodes=2, tasks_per_node=2, cpus_per_task=4, memory="32G")
    (told,) = found(whole)  # the default partition
    assert told.state == OK and "is up: 2 nodes" in told.found
    name = told.found.split()[1]
    (told,) = found(replace(whole, partition=name, nodes=3))
    assert (told.state, told.found) == (FAULT, f"3 nodes are asked for, {name} has 2")
    (told,) = found(replace(whole, cpus_per_task=5))
    assert told.state == FAULT and "10 cores a node are asked for" in told.found
    (told,) = found(replace(whole, partition="elsewhere"))
    assert told.state == FAULT and told.do.startswith(f"set cluster.partition to one of {name}")


def test_gpus_and_nodes_that_are_not_there_are_told(cluster):
    (told,) = found(ClusterConfig(partition="cpu", gpus_per_node=1))
    assert (told.state, told.found) == (FAULT, "1 GPUs a node are asked for, cpu has 0")
    (told,) = found(ClusterConfig(partition="gpu"))  # its nodes stand on paper alone
    assert (told.state, told.found) == (FAULT, "partition gpu has no nodes now")
