# shellcheck shell=bash disable=SC2154
# Starting, finding and ending this cluster's processes and no others.

readonly wait_seconds=90

# start_time PID: clock ticks since boot; nothing if the process is gone or a zombie
start_time() { sed -En 's/^.*\) [^ZX] ([0-9-]+ ){18}([0-9]+) .*/\2/p' "/proc/$1/stat" 2>/dev/null || true; }

# alive NAME: the recorded process still runs (process ids are reused: the start time tells)
alive() {
  local pid since
  [ -s "$dir/run/$1.pid" ] || return 1
  read -r pid since <"$dir/run/$1.pid" || return 1
  [ -n "$since" ] && [ "$(start_time "$pid")" = "$since" ]
}
gone() { ! alive "$1"; }
pid_of() { cut -d' ' -f1 "$dir/run/$1.pid"; }

# launch NAME COMMAND...: a daemon in its foreground mode and a session of its own, so that $! is its pid
launch() {
  local name=$1
  shift
  (cd "$dir/log" && exec setsid "$@") </dev/null >>"$dir/log/$name.out" 2>&1 9>&- &
  echo "$! $(start_time $!)" >"$dir/run/$name.pid"
}

# require NAME COMMAND...: wait until the command says that the daemon works
require() {
  local name=$1
  shift
  wait_for "$wait_seconds" works_or_died "$name" "$@" || true
  "$@" >/dev/null 2>&1 || give_up "$name"
}
give_up() {
  say "$1 did not start; the end of its log in $dir/log:"
  tail -qn 5 "$dir/log/$1.log" "$dir/log/$1.out" >&2 2>/dev/null || true
  stop_daemons
  exit 1
}
works_or_died() { gone "$1" || "${@:2}"; }

end() {
  local name=$1 seconds=$2
  if alive "$name"; then
    kill -TERM "$(pid_of "$name")" 2>/dev/null || true
    if ! wait_for "$seconds" gone "$name"; then
      kill -KILL "$(pid_of "$name")" 2>/dev/null || true
      wait_for 10 gone "$name" || say "$name does not end"
    fi
  fi
  rm -f "$dir/run/$name.pid"
}

# stepds [NODE]: pids of this cluster's slurmstepd. They outlive their slurmd by design, and each holds its log open.
stepds() {
  local pid file name
  grep -lsx slurmstepd /proc/[0-9]*/comm | cut -d/ -f3 | while read -r pid; do
    for file in /proc/"$pid"/fd/*; do
      name=$(readlink "$file" 2>/dev/null || true)
      [[ $name == "$dir"/log/slurmd-${1:-n*}.log ]] || continue
      echo "$pid"
      break
    done
  done
}

# strays: pids of job processes that outlived their step; they have our SLURM_CONF and our cluster's name
strays() {
  grep -lsz '^SLURM_CLUSTER_NAME=devcluster$' /proc/[0-9]*/environ | while read -r file; do
    if grep -qszxF "SLURM_CONF=$SLURM_CONF" "$file"; then cut -d/ -f3 <<<"$file"; fi
  done
}

# kill_trees PID...: SIGKILL to the processes and all their descendants
kill_trees() {
  local pids=("$@") index=0
  while [ $index -lt ${#pids[@]} ]; do
    mapfile -t -O ${#pids[@]} pids < <(grep -ls $'^PPid:\t'"${pids[index]}"'$' /proc/[0-9]*/status | cut -d/ -f3)
    index=$((index + 1))
  done
  [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
}
