#!/usr/bin/env bash
# The images of this project, built with Debian's own tools in one folder; the tests and full.sh call it as root.
#   image.sh tools                                  Debian packages, Apptainer, a base image from Debian's archive
#   image.sh docker CONTEXT TORCH_REQUIREMENTS TAG  the Dockerfile, by buildah
#   image.sh sif CONTEXT TORCH_REQUIREMENTS SIF ARCHIVE   apptainer.def upon a docker-archive, as an ordinary user
#   image.sh archive TAG ARCHIVE                    an image as docker-archive
#   image.sh buildah | as-user COMMAND ...          buildah on this folder's images; a command as the ordinary user
# MEDSYN_CONTAINER_CACHE is the folder (default /var/tmp/medsyn-container); remove it to start anew.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cache=${MEDSYN_CONTAINER_CACHE:-/var/tmp/medsyn-container}
base=debian:bookworm-slim # the Dockerfile's default
user=www-data
zstd='-comp zstd -Xcompression-level 1' # gzip, Apptainer's default, takes five times as long

buildah() { command buildah --root "$cache/storage" --runroot "$cache/run" "$@"; }

install_packages() {
  local packages=(buildah squashfs-tools squashfuse uidmap fakeroot mmdebstrap)
  if dpkg -s "${packages[@]}" >/dev/null 2>&1; then return; fi
  export DEBIAN_FRONTEND=noninteractive
  exec 8>/run/medsyn-devcluster.lock # slurm/devcluster installs packages under the same lock
  flock 8
  apt-get -qq update
  apt-get -qqy -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}" >&2
  exec 8>&-
}

# The published image cannot be had everywhere; this one is from the same suite, under the name that FROM asks for.
make_base() {
  local mirror container
  if buildah inspect --type image $base >/dev/null 2>&1; then return; fi
  # shellcheck disable=SC2016 # apt expands it
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | sed -n 1p)
  mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$cache/base.tar" "$mirror"
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$cache/base.tar" / >/dev/null
  buildah commit --quiet "$container" docker.io/library/$base >/dev/null
  buildah rm "$container" >/dev/null
  rm "$cache/base.tar"
}

tools() {
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9
  install_packages
  [ -x "$cache/apptainer/usr/bin/apptainer" ] || "$here/get_apptainer.sh" "$cache/apptainer"
  # devices are often root's alone; apptainer mounts images through this one
  if [ ! -e "$cache/fuse" ]; then
    mknod "$cache/fuse" c 10 229
    chmod 666 "$cache/fuse"
  fi
  make_base
}

# Becomes the command, so that signals reach it.
as_user() {
  # shellcheck disable=SC2016 # the inner shell expands it
  exec unshare --mount sh -c 'mount --bind "$0" /dev/fuse && exec "$@"' "$cache/fuse" \
    setpriv --reuid=$user --regid=$user --clear-groups --no-new-privs --bounding-set=-all "$@"
}

first_file() {
  local file
  for file in "$@"; do
    if [ -f "$file" ]; then
      echo "$file"
      return
    fi
  done
}

# pip_settings FOLDER CERT: pip.conf and ca.crt that reach this machine's index; CERT is where pip will find ca.crt
pip_settings() {
  local folder=$1 written authority index
  written=$(cat /etc/pip.conf /etc/xdg/pip/pip.conf ~/.config/pip/pip.conf 2>/dev/null || true)
  authority=$(first_file "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" "${SSL_CERT_FILE:-}" \
    "$(sed -n 's/^cert *= *//p' <<<"$written" | head -1)" /etc/ssl/certs/ca-certificates.crt)
  index=${PIP_INDEX_URL:-${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$(sed -n 's/^index-url *= *//p' <<<"$written" | head -1)}}}
  mkdir -p "$folder"
  echo '[global]' >"$folder/pip.conf"
  if [ -n "$authority" ]; then
    cp "$authority" "$folder/ca.crt"
    echo "cert = $2" >>"$folder/pip.conf"
  fi
  if [[ $index = http* ]]; then echo "index-url = $index" >>"$folder/pip.conf"; fi
  touch "$folder/ca.crt"
}

docker() {
  local context=$1 torch=$2 tag=$3
  pip_settings "$cache/secrets-docker" /run/secrets/ca.crt
  buildah bud --isolation chroot --layers --pull-never --build-arg TORCH_REQUIREMENTS="$torch" --tag "$tag" \
    --secret id=pip_conf,src="$cache/secrets-docker/pip.conf" --secret id=ca,src="$cache/secrets-docker/ca.crt" \
    "$context"
}

archive() {
  rm -f "$2"
  buildah push --quiet "$1" "docker-archive:$2"
  chmod a+r "$2"
}

sif() {
  local context=$1 torch=$2 sif=$3 archive=$4 work
  pip_settings "$cache/secrets-sif" /mnt/ca.crt
  work=$(mktemp -d "$(dirname "$sif")/build-XXXX")
  chown $user "$work"
  cd "$context"
  export HOME=$work APPTAINER_TMPDIR=$work APPTAINER_CACHEDIR=$work/cache
  (as_user "$cache/apptainer/usr/bin/apptainer" build --force --mksquashfs-args "$zstd" --bind "$cache/secrets-sif:/mnt" \
    --build-arg BOOTSTRAP=docker-archive --build-arg BASE="$archive" --build-arg TORCH_REQUIREMENTS="$torch" \
    "$work/made.sif" apptainer.def)
  mv "$work/made.sif" "$sif"
  rm -rf "$work"
}

command=${1:?"$(sed -n '2,9p' "$0")"}
shift
case $command in
  tools) tools ;;
  docker | archive | sif | buildah) "$command" "$@" ;;
  as-user) as_user "$@" ;;
  *) echo "image.sh: no command '$command'" >&2 && exit 2 ;;
esac
