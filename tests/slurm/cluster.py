"""A real SLURM cluster on one machine: munge, slurmctld and slurmd on loopback, without systemd.

The node has two fake GPUs and more CPUs than the machine, so that several jobs run at once. The
cluster exists during the block `with Cluster(folder):`, or as long as the command
`python tests/slurm/cluster.py FOLDER` runs. Tested with SLURM 22.05 of Debian 12 and cgroup v1.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "workflow/scripts")]

from conftest import wait_until  # noqa: E402
from optstate.job import end_with_parent  # noqa: E402

PACKAGES = ("munge", "slurm-wlm")
ETC = Path("/etc/slurm")  # jobs do not inherit SLURM_CONF, so their commands read this
CONFIGURATION = ("slurm.conf", "gres.conf", "cgroup.conf")
FREEZER = Path("/sys/fs/cgroup/freezer")  # of cgroup v1
OURS = "# made by tests/slurm/cluster.py, which removes it\n"
NUM_GPUS = 2

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job is held until its old credential expires, which takes 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/{proctrack}
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=0
# squeue lists ended jobs long enough for Snakemake and the tests.
MinJobAge=3600
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory={memory} Gres=gpu:fake:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2
"""
GRES_CONF = "NodeName={host} Name=gpu Type=fake File={folder}/gpu[0-{last}]\n"
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"


class Unavailable(Exception):  # noqa: N818 - the tests are skipped then
    """The reason why no cluster can be started on this machine."""


class Cluster:
    """A running cluster. All its files except the configuration are in ``folder``.

    Attributes:
        folder: a short, absolute path.
        proctrack: how the node tracks the processes of a job. With `cgroup`, a signal reaches only
            the first process of a job's step, as on most clusters. Without cgroup v1 it is
            `linuxproc`, which sends the signal to all processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.proctrack = "cgroup" if os.access(FREEZER / "cgroup.procs", os.W_OK) else "linuxproc"
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        require_packages()
        try:
            self.start()
        except OSError as error:
            self.stop()
            raise Unavailable(f"SLURM cannot be set up: {error}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemons, and wait until the node accepts jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.configure()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        self.spawn(
            "munged", "--foreground", "--force",
            f"--socket={self.folder}/munge.socket",
            *(f"--{x}-file={self.folder}/munge.{x}" for x in ("key", "pid", "seed", "log")),
        )  # fmt: skip
        wait_until((self.folder / "munge.socket").exists, 20)
        self.spawn("slurmctld", "-D")
        wait_until(is_up, 30)
        self.start_node()

    def start_node(self) -> None:
        """Start slurmd, for the first time or after :meth:`kill_node`, and wait for the node."""
        self.spawn("slurmd", "-D", "-N", self.host)
        wait_until(lambda: self.get_node_state() in ("idle", "mixed", "allocated"), 60)

    def get_node_state(self) -> str:
        """Return the state of the node, for example idle, mixed, drained or down."""
        return run_slurm("sinfo", "--noheader", "--partition=main", "--format=%T").strip(" \n*")

    def kill_node(self) -> None:
        """Kill slurmd and all processes of jobs, as a power failure would."""
        slurmd = next(daemon for daemon in self.daemons if daemon.args[0] == "slurmd")
        self.daemons.remove(slurmd)
        slurmd.kill()
        slurmd.wait()
        wait_until(self.kill_jobs)
        run_slurm("scontrol", "update", f"NodeName={self.host}", "State=DOWN", "Reason=died")

    def kill_jobs(self) -> bool:
        """Kill the processes of this cluster's jobs. Returns whether none is left or new."""
        for pid in self.find_job_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not self.find_job_processes()

    def find_job_processes(self) -> list[int]:
        """Return the ids of the jobs' processes, and of slurmd's processes that supervise them."""
        supervisor = b"slurmstepd: ["
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes()
                in_job = b"SLURM_CLUSTER_NAME=test\0" in environment
                if in_job or command.startswith(supervisor):
                    found.append(int(process.name))
        return found

    def stop(self) -> None:
        """End every job and daemon of this cluster, and remove its configuration."""
        with contextlib.suppress(OSError, subprocess.SubprocessError, AssertionError):
            if self.daemons:
                run_slurm("scancel", "--user=root")
                wait_until(lambda: not run_slurm("squeue", "--noheader"), 30)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for name in CONFIGURATION:
            path = ETC / name
            if path.exists() and path.read_text().startswith(OURS):
                path.unlink()
        with contextlib.suppress(OSError):  # SLURM leaves this empty folder
            (FREEZER / f"slurm_{self.host}").rmdir()

    def configure(self) -> None:
        """Write the configuration and make the fake GPUs: copies of /dev/null."""
        values = {
            "host": self.host,
            "folder": self.folder,
            "ports": find_free_ports(2),
            "proctrack": self.proctrack,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            "gpus": NUM_GPUS,
            "last": NUM_GPUS - 1,
        }
        for number in range(NUM_GPUS):
            os.mknod(self.folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (ETC / "slurm.conf").write_text(OURS + SLURM_CONF.format(**values))
        (ETC / "gres.conf").write_text(OURS + GRES_CONF.format(**values))
        if self.proctrack == "cgroup":
            (ETC / "cgroup.conf").write_text(OURS + CGROUP_CONF)

    def spawn(self, *command: str) -> None:
        """Start a daemon in its own session. It ends with this process."""
        parent = os.getpid()
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            self.daemons.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                    preexec_fn=lambda: end_with_parent(signal.SIGTERM, parent),
                )
            )  # fmt: skip


def require_packages() -> None:
    """Install SLURM if it is missing.

    Raises:
        Unavailable: SLURM cannot be installed, or this machine belongs to another cluster.
    """
    if os.geteuid() != 0:
        raise Unavailable("SLURM's daemons must be started as root")
    for configured in map(ETC.joinpath, CONFIGURATION):
        if configured.exists() and not configured.read_text().startswith(OURS):
            raise Unavailable(f"{configured} exists: this machine belongs to another SLURM cluster")
    if shutil.which("scontrol") and is_up():
        raise Unavailable("this machine belongs to another, running SLURM cluster")
    if all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch", "srun"))):
        return
    if not shutil.which("apt-get"):
        raise Unavailable("SLURM is not installed, and apt-get, which could install it, is missing")
    install = ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(install)} failed: {done.stderr.strip()}")


def find_free_ports(number: int) -> list[int]:
    """Return ports of the loopback interface that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def run_slurm(*command: str) -> str:
    """Run a command of SLURM, which must succeed. Returns its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def is_up() -> bool:
    """Return whether slurmctld answers."""
    return "UP" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout


if __name__ == "__main__":
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: sys.exit())
    try:
        with Cluster(Path(sys.argv[1])):
            print("The cluster is up. Press Ctrl-C to stop it.")
            signal.pause()
    except Unavailable as reason:
        sys.exit(f"no cluster: {reason}")
