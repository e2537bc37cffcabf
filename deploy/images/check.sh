#!/bin/sh
# Runs the steps of the Dockerfile without a container engine, starts what comes out, and says its size. As root on Debian:
#   apt-get install --no-install-recommends buildah debootstrap
#   deploy/images/check.sh model_repo
# Debian's own Python stands in for python:3.11-slim, which is Debian with another Python of about the same size.
set -eu
models=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python-is-python3,ca-certificates bookworm "$work/base"
rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
rm -rf "$work"/base/usr/share/doc "$work"/base/usr/share/man "$work"/base/usr/share/locale
base=$(buildah from scratch)
buildah add --quiet "$base" "$work/base" /
buildah config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$base"
buildah commit --quiet --rm "$base" docker.io/library/python:3.11-slim

mounts="--volume /etc/ssl/certs:/etc/ssl/certs:ro"
if [ -f /etc/pip.conf ]; then mounts="$mounts --volume /etc/pip.conf:/etc/pip.conf:ro"; fi
# shellcheck disable=SC2086 # several words
buildah bud --network host --pull-never --format docker $mounts --tag levi-serve .
buildah images

container=$(buildah from --pull-never localhost/levi-serve)
trap 'buildah rm "$container" >/dev/null; rm -rf "$work"' EXIT
size=$(du -sm "$(buildah mount "$container")" | cut -f1)
user=$(buildah run "$container" -- id -u)
echo "$size MiB, runs as user $user"
[ "$size" -le 500 ] && [ "$user" -ne 0 ]
for folder in / /opt/levi; do
    if buildah run "$container" -- touch "$folder/new" 2>/dev/null; then
        echo "can write to $folder"
        exit 1
    fi
done

buildah run --network host --volume "$models:/models:ro" "$container" -- levi-serve --port 8765 &
serving=$!
for _ in $(seq 60); do
    if python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8765/readyz', timeout=1)" 2>/dev/null; then
        echo "it serves"
        kill "$serving"
        wait "$serving" || true
        exit 0
    fi
    sleep 1
done
echo "it does not serve"
kill "$serving"
wait "$serving" || true
exit 1
