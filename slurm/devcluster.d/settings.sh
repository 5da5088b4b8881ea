# shellcheck shell=bash disable=SC2034
# The settings of a cluster and their defaults: `devcluster start NAME=VALUE` changes one. `devcluster --help` prints this.
nodes=4              # virtual nodes n1, n2, ...
cpus=4               # CPUs that each node pretends to have
gpus=2               # fake GPUs of each node: links to /dev/null; CUDA_VISIBLE_DEVICES is set as on real ones
memory=8000          # MB that each node pretends to have
port=0               # first of nodes+2 TCP ports; 0 looks for free ones
accounting=1         # 1: slurmdbd and MariaDB, for sacct; 0: none
grace=15             # seconds from the preemption warning to the kill
user_signal=1        # 1: preemption warns with the job's own --signal; 0: with SIGTERM
cred_expire=5        # seconds, from 5; a requeued job waits as long before it starts again
max_array=1001       # MaxArraySize: highest array index + 1
kill_invalid=0       # 1: jobs whose dependency can never be met are cancelled
min_job_age=300      # seconds that slurmctld remembers a job that has ended
proctrack=linuxproc  # linuxproc or pgid: how a job's processes are found without cgroups
extra=               # further lines of slurm.conf
