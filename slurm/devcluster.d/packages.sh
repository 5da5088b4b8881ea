# shellcheck shell=bash disable=SC2154
# The Debian packages that a cluster needs, and their installation.

readonly slurm_packages=(slurmctld slurmd slurm-client munge)
readonly accounting_packages=(slurmdbd mariadb-server-core mariadb-client-core)
readonly no_packages=3 # exit status

missing_packages() {
  local program packages=()
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || packages=("${slurm_packages[@]}")
  done
  if [ "$accounting" = 1 ]; then
    for program in slurmdbd mariadbd mariadb-install-db my_print_defaults; do
      command -v $program >/dev/null || { packages+=("${accounting_packages[@]}"); break; }
    done
  fi
  echo "${packages[@]}"
}

# Needs root. No service may start: the cluster's daemons are its own.
apt_install() {
  local policy=/usr/sbin/policy-rc.d try
  exec 8>/run/medsyn-devcluster.lock
  flock 8
  if [ ! -e $policy ]; then
    # shellcheck disable=SC2064
    trap "rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  for try in 1 2 3; do
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt-get -q update || true
    if apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"; then return 0; fi
    [ $try = 3 ] || { sleep $((5 * try)); apt-get -q update || true; }
  done
  return 1
}

ensure_packages() {
  local packages line become=()
  read -ra packages <<<"$(missing_packages)"
  [ ${#packages[@]} -gt 0 ] || return 0
  line="apt-get install -y --no-install-recommends ${packages[*]}"
  if [ "$install" = 0 ]; then
    say "packages are missing: start --install fetches them without starting a service, or: $line"
    exit $no_packages
  fi
  if [ "$(id -u)" != 0 ]; then become=(sudo -n); fi
  if ! "${become[@]}" bash -c "$(declare -f apt_install); apt_install ${packages[*]}" >&2; then
    say "could not install the packages; as root: $line"
    exit $no_packages
  fi
}
