"""A real SLURM on this machine: Debian's slurmctld, slurmd and munge, two emulated nodes, nothing of it left behind.

The daemons and their jobs live in a PID and a mount namespace of their own (cluster.sh): they end with the process that
holds their input, the tests', however that ends. Every cluster has its own key, folder, ports and job numbers.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "sinfo", "unshare")
PACKAGES = "slurmctld slurmd slurm-client munge"
INIT = Path(__file__).with_name("cluster.sh")
NODES = ("node1", "node2")
CPUS, MEMORY_MB = 8, 32768  # of a node, as SLURM counts them: one task of configs/cluster/cpu.yaml fits
SPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
END = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")

# cred_expire: a requeued job waits as long before it starts again, two minutes by default; 5 s is the least. All else
# is SLURM's default, or needs no systemd.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
KillWait=2
MinJobAge=3600
FirstJobId={first_job}
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1,sched_min_interval=100000
GresTypes=gpu
NodeName=gpu[1-2] CPUs=96 RealMemory=1048576 Gres=gpu:8 State=DOWN Reason=paper
PartitionName=cpu Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu[1-2] MaxTime=INFINITE State=UP
PartitionName=spot Nodes=gpu[1-2] MaxTime=INFINITE State=UP
"""  # two nodes with GPUs are told of, so that jobs for them are looked at, and wait
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory} State=UNKNOWN\n"
)


def why_not() -> str | None:
    """Why no cluster can be brought up here, in one line; None where it can."""
    if os.geteuid() != 0:
        return "a SLURM for tests is started by root only"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"no {', '.join(missing)} here; on Debian and Ubuntu: apt install --no-install-recommends {PACKAGES}"
    tried = subprocess.run(
        [*SPACES, "mount", "--bind", "/etc/hosts", "/etc/hosts"], capture_output=True, text=True, check=False
    )
    return f"no namespaces for it here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """A running SLURM; `environment` is what its commands need besides what the process has."""

    def __init__(self):
        self._stack = ExitStack()

    def __enter__(self) -> "Cluster":
        with self._stack as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
            self._configure()
            init = [*SPACES, "bash", INIT, self.folder, *NODES]
            with (self.folder / "log" / "init.log").open("w") as log:
                self._daemons = subprocess.Popen(init, stdin=subprocess.PIPE, stdout=log, stderr=log)
            stack.callback(self._end)
            self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
            self._await_nodes()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _configure(self) -> None:
        self.folder.chmod(0o755)
        for name in ("log", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
        hosts = Path("/etc/hosts").read_text()
        (self.folder / "hosts").write_text(f"127.0.0.1 {' '.join(NODES)}\n{hosts}")
        host, (port, *ports) = socket.gethostname().partition(".")[0], _free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=at, cpus=CPUS, memory=MEMORY_MB) for name, at in zip(NODES, ports)
        ]
        facts = dict(host=host, port=port, nodes=",".join(NODES), first_job=random.randrange(1000, 9000))
        conf = CONF.format(folder=self.folder, **facts)
        (self.folder / "slurm.conf").write_text("".join(nodes) + conf)

    def _await_nodes(self, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._daemons.poll() is None:
            told = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", timeout=10)
            if set(told.stdout.split()) == set(NODES):
                return
            time.sleep(0.2)
        raise RuntimeError(f"SLURM did not come up:\n{self.logs()}")

    def _end(self) -> None:
        self._daemons.stdin.close()
        try:
            self._daemons.wait(10)
        except subprocess.TimeoutExpired:
            self._daemons.kill()  # --kill-child: process 1 of the namespace goes too, and all in it
            self._daemons.wait()

    def logs(self, lines: int = 30) -> str:
        """The last lines of every daemon's log."""
        texts = ((path.name, path.read_text(errors="replace")) for path in sorted((self.folder / "log").iterdir()))
        return "\n".join(f"== {name}\n" + "\n".join(text.splitlines()[-lines:]) for name, text in texts)

    def run(self, *command, **more) -> subprocess.CompletedProcess:
        """A command that talks to this cluster, with what it wrote."""
        words = [str(word) for word in command]
        environment = {**os.environ, **self.environment, **more.pop("env", {})}
        return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, **more)

    def job(self, job: int | str) -> dict[str, str]:
        """What `scontrol` tells of a job (or an element, "12_3"), by its names."""
        told = self.run("scontrol", "--oneliner", "show", "job", job)
        assert told.returncode == 0, told.stderr
        return dict(re.findall(r"(\w+)=(\S*)", told.stdout.splitlines()[0]))

    def wait(self, job: int | str, states: tuple[str, ...] = END, seconds: float = 180.0) -> dict[str, str]:
        """The job's facts once it is in one of these states (by default at its end); AssertionError after `seconds`."""
        until = time.monotonic() + seconds
        while (facts := self.job(job))["JobState"] not in states:
            assert time.monotonic() < until, f"{facts}\n{self.logs()}"
            time.sleep(0.1)
        return facts


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
