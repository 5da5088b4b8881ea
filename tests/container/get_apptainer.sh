#!/usr/bin/env bash
# get_apptainer.sh FOLDER: Apptainer of Debian sid in a folder of its own, with the C library it needs. Debian 12 has no
# Apptainer, and installing sid's would replace the machine's own C library; nothing outside FOLDER is changed here.
# Wants apt, dpkg, patchelf and the network; signatures are checked against Debian's keyring.
set -euo pipefail
folder=$1
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# shellcheck disable=SC2016 # apt expands it
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | sed -n 1p)
mkdir -p "$work"/{lists/partial,cache/archives/partial,packages}
printf 'Types: deb\nURIs: %s\nSuites: sid\nComponents: main\nSigned-By: %s\n' "$mirror" $keyring >"$work/sid.sources"
apt() {
  apt-get -o Dir::Etc::sourcelist="$work/sid.sources" -o Dir::Etc::sourceparts=/nonexistent \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -qq "$@"
}
apt update
libraries=(libc6 libseccomp2 libsqlite3-0 libgcc-s1)
(cd "$work/packages" && apt download apptainer "${libraries[@]}")

rm -rf "$folder"
mkdir -p "$folder"
dpkg -x "$work"/packages/apptainer_*.deb "$folder"
for name in "${libraries[@]}"; do dpkg -x "$work/packages/$name"_*.deb "$folder/libc"; done
own=$folder/libc/usr/lib/x86_64-linux-gnu
for program in "$folder/usr/bin/apptainer" "$folder/usr/lib/x86_64-linux-gnu/apptainer/bin/starter"; do
  patchelf --set-interpreter "$own/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$own" "$program"
done
# it looks for its configuration and state beside its program
mv "$folder/etc" "$folder/usr/etc"
mkdir -p "$folder/usr/var/lib/apptainer/mnt/session"
ln -sfn ../var "$folder/usr/lib/var"
ln -sfn ../etc "$folder/usr/lib/etc"
"$folder/usr/bin/apptainer" --version
