# shellcheck shell=bash disable=SC2154
# What slurm.conf, slurmdbd.conf and gres.conf say; every setting was found necessary, or shortens a wait.

# Slurm can be kept off the other interfaces only by binding to this machine's name. Where that is not 127.0.0.1 (Debian
# writes 127.0.1.1 into /etc/hosts) job steps could not call back: there it listens on all, protected by munge's key.
name_is_loopback() {
  local address
  read -r address _ < <(getent ahostsv4 "$(</proc/sys/kernel/hostname)") && [ "$address" = 127.0.0.1 ]
}

write_slurm_conf() {
  if name_is_loopback; then echo CommunicationParameters=NoCtldInAddrAny,NoInAddrAny; fi
  cat <<CONF
ClusterName=devcluster
# "localhost" is accepted as the controller's name whatever the machine is called
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
# cred_expire is also how long a requeued job waits before it starts again (120 where it is not set)
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket,cred_expire=$cred_expire
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.own
SlurmdPidFile=$dir/run/slurmd-%n.own
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
# Nothing here needs cgroups. linuxproc follows parents and can lose what ignores SIGTERM when its batch shell dies
# first ("stop" ends such strays); pgid loses nothing, but where init reaps slowly each srun step ends seconds later.
ProctrackType=proctrack/$proctrack
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
# an ordinary user's slurmd cannot give the submitter's limits to jobs
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# without it a job that names no memory takes all of a node's
DefMemPerCPU=$((memory / cpus))
GresTypes=gpu
# believe the node lines below although the machine is smaller
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=5,batch_sched_delay=0,bf_max_job_test=2000,default_queue_depth=1000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
MinJobAge=$min_job_age
InactiveLimit=0
CompleteWait=0
# With 2 a node that was set DOWN is back at once and gets its own requeued job while the old one still dies.
ReturnToService=1
TreeWidth=65533
# from the clock: a new directory's cluster must not repeat job ids, files of older jobs are named by them
FirstJobId=$(($(date +%s) % 6000000 * 10 + 1))
MaxArraySize=$max_array
MaxJobCount=20000
JobCompType=jobcomp/none
MailProg=/bin/true
CONF
  if [ "$user_signal" = 1 ]; then echo SlurmctldParameters=preempt_send_user_signal; fi
  if [ "$kill_invalid" = 1 ]; then echo DependencyParameters=kill_invalid_depend; fi
  if [ "$accounting" = 1 ]; then
    cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
# the connection to slurmdbd takes its munge socket from here, not from AuthInfo
AccountingStoragePass=$dir/run/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=30
CONF
  else
    # without accounting jobacct_gather/linux is of no use, and on some kernels its step daemon crashes
    printf '%s\n' AccountingStorageType=accounting_storage/none JobAcctGatherType=jobacct_gather/none
  fi
  printf '%s\n' "$extra"
  local number
  for number in $(seq 1 "$nodes"); do
    echo "NodeName=n$number NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 1 + number))" \
      "CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus State=UNKNOWN"
  done
  # jobs of gpu preempt those of preempt; cpu neither preempts nor is preempted
  cat <<CONF
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=OFF
PartitionName=gpu Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=preempt Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace
CONF
}

write_slurmdbd_conf() {
  cat <<CONF
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=$user
LogFile=$dir/log/slurmdbd.log
PidFile=$dir/run/slurmdbd.own
# must be writable; /tmp where it is not set
ArchiveDir=$dir/tmp
StorageType=accounting_storage/mysql
# the unix socket that MYSQL_UNIX_PORT names
StorageHost=localhost
StorageUser=$user
StorageLoc=slurm_acct
CONF
}

configure() {
  local number
  mkdir -p "$dir"/{dev,db,tmp} && chmod 700 "$dir/db"
  for number in $(seq 1 "$nodes"); do mkdir -p "$dir/spool/n$number"; done
  rm -f "$dir"/dev/gpu*
  for number in $(seq 0 $((gpus - 1))); do ln -s /dev/null "$dir/dev/gpu$number"; done
  if [ ! -s "$dir/etc/munge.key" ]; then (umask 077 && head -c 1024 /dev/urandom >"$dir/etc/munge.key"); fi
  save_settings >"$dir/etc/settings"
  write_slurm_conf >"$dir/etc/slurm.conf"
  printf '%s\n' AutoDetect=off "Name=gpu File=$dir/dev/gpu[0-$((gpus - 1))]" >"$dir/etc/gres.conf"
  # slurmd loads a cgroup plugin although nothing uses it; v1's does nothing until it is used, v2's wants systemd
  echo CgroupPlugin=cgroup/v1 >"$dir/etc/cgroup.conf"
  (umask 077 && write_slurmdbd_conf >"$dir/etc/slurmdbd.conf")
}
