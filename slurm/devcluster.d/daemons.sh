# shellcheck shell=bash disable=SC2154
# The daemons: what each is started with, when it works, and their end.

start_munged() {
  alive munged && return
  rm -f "$dir"/run/munge.socket*
  # --force: as root, and with a socket below a directory that others may write to (/tmp)
  launch munged munged --foreground --force --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.socket" \
    --pid-file="$dir/run/munged.own" --log-file="$dir/log/munged.log" --seed-file="$dir/run/munged.seed"
  require munged munge -n -S "$dir/run/munge.socket"
}

# --force: also where no name service knows this machine's name.
# No network, no grants (the socket lies in a directory of ours), no fsync per transaction, small log files.
start_mariadbd() {
  alive mariadbd && return
  local options=(--no-defaults --datadir="$dir/db" --tmpdir="$dir/tmp" --innodb-log-file-size=8M)
  if [ "$(id -u)" = 0 ]; then options+=(--user=root); fi
  if [ ! -e "$dir/db/installed" ]; then
    mariadb-install-db "${options[@]}" --auth-root-authentication-method=normal --skip-test-db --force \
      >"$dir/log/mariadb-install.log" 2>&1 || give_up mariadb-install
    touch "$dir/db/installed"
  fi
  rm -f "$dir/run/mysql.sock"
  launch mariadbd mariadbd "${options[@]}" --socket="$dir/run/mysql.sock" --pid-file="$dir/run/mariadbd.own" \
    --log-error="$dir/log/mariadbd.log" --skip-networking --skip-grant-tables --skip-log-bin \
    --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900
  require mariadbd test -S "$dir/run/mysql.sock"
}

start_slurmdbd() {
  alive slurmdbd && return
  MYSQL_UNIX_PORT=$dir/run/mysql.sock launch slurmdbd slurmdbd -D
  require slurmdbd sacctmgr -n list cluster
  # must be there before slurmctld registers
  if [ -z "$(sacctmgr -nP list cluster format=cluster)" ]; then sacctmgr -iQ add cluster devcluster >/dev/null; fi
}

controller_answers() { scontrol ping | grep -q 'is UP'; }

start_slurmctld() {
  alive slurmctld && return
  launch slurmctld slurmctld -D
  require slurmctld controller_answers
}

# node_ready NODE: it answers and takes jobs; a drained one, or one set DOWN, is resumed
node_ready() {
  local state
  state=$(sinfo -hN -p cpu -n "$1" -o %T)
  case $state in
    down* | drain*) scontrol update nodename="$1" state=resume || true ;;
  esac
  [[ $state =~ ^(idle|mixed|allocated|completing|planned)$ ]]
}

start_node() {
  alive "slurmd-$1" || launch "slurmd-$1" slurmd -D -N "$1"
}

stop_daemons() {
  local name pids
  # nodes first: slurmctld would have them start what is still queued
  mapfile -t pids < <(stepds)
  kill_trees "${pids[@]}"
  for name in "$dir"/run/slurmd-*.pid; do
    name=${name##*/}
    end "${name%.pid}" 10
  done
  mapfile -t pids < <(stepds; strays)
  kill_trees "${pids[@]}"
  end slurmctld 20
  end slurmdbd 20
  end mariadbd 30
  end munged 10
}
