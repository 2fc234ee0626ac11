#!/bin/sh
# What a user does with a source distribution: installs it, and uses the commands as README and docs/package.md say.
#
#     installed.sh SDIST
#
# tests/chroots.sh runs it, as the first process of a PID namespace and in a home that has nothing else: it also looks
# for what the commands leave, processes, and files anywhere but in the cache folder.
set -eu
sdist=$1
export XDG_CACHE_HOME="$HOME/cache"
export PATH="$HOME/venv/bin:$PATH"
cd "$HOME"

began=$(date +%s)
step() { echo "$(($(date +%s) - began)) s: $*"; }
fail() { echo "$*" >&2; exit 1; }

# Everything of this user's that running is to leave alone.
files() {
    find "$HOME" -path "$XDG_CACHE_HOME" -prune -o -not -path "$HOME" -printf '%p %s %T@\n' | sort
    find /tmp /var/tmp -user "$(id -u)"
}

# alone COMMAND: all that it started has ended. What ends by itself has a moment; `sleep` also has this shell reap it.
alone() {
    command=$1
    for second in 1 2 3 4 5; do
        # No command in a subshell, which would be there too.
        set -- /proc/[0-9]*
        [ "$*" != /proc/1 ] || return 0
        sleep 1
    done
    for process; do tr '\0' ' ' <"$process/cmdline"; echo; done >&2 || true
    fail "$command left all of these but the first"
}

# until_said TEXT FILE: waits for it.
until_said() {
    for second in $(seq 120); do
        ! grep -q "$1" "$2" || return 0
        sleep 1
    done
    cat "$2"
    fail "'$1' was never said"
}

step "python3 -m venv venv, pip install ($(python3 --version), $(gcc --version | head -n 1))"
python3 -m venv venv
pip install --quiet "$sdist"
before=$(files)

for command in venv/bin/vfu-*; do
    step "${command##*/} --version"
    "${command##*/}" --version
done

for demo in "" sriov; do
    step "vfu-demo $demo"
    vfu-demo $demo
    alone "vfu-demo $demo"
done

step "vfu-images all"
vfu-images all

work=$XDG_CACHE_HOME/work
mkdir "$work"
step "vfu-server --socket-dir /tmp/device --device blk --vfs 2 --disk ram:256M"
vfu-server --socket-dir /tmp/device --device blk --vfs 2 --disk ram:256M >"$work/server" &
server=$!
until_said '^ready /tmp/device$' "$work/server"

step "vfu-boot /tmp/device --function vf1"
mkfifo "$work/keys"
vfu-boot /tmp/device --function vf1 <"$work/keys" >"$work/screen" &
guest=$!
exec 3>"$work/keys"
until_said '# ' "$work/screen"
echo 'cat /proc/partitions' >&3
until_said '262144 vda' "$work/screen"
echo 'poweroff -f' >&3
exec 3>&-
wait "$guest"

step "vfu-boot /tmp/device --function vf1 --script script"
cat >"$work/script" <<'END'
head -c 8388608 /dev/urandom >/random
cat /random >/dev/vda
sync
echo 3 >/proc/sys/vm/drop_caches
head -c 8388608 /dev/vda | cmp - /random && exit 42
END
status=0
vfu-boot /tmp/device --function vf1 --script "$work/script" || status=$?
[ $status = 42 ] || fail "the script in the guest ended with $status"

step "vfu-owner --pf /tmp/device commands"
vfu-owner --pf /tmp/device commands
kill "$server"
wait "$server"
alone "vfu-server"
[ -z "$(find /tmp/device -type s)" ] || fail "vfu-server left its sockets"
rm -r /tmp/device

after=$(files)
[ "$before" = "$after" ] || {
    echo "$before" >"$work/before"
    echo "$after" | diff "$work/before" - || fail "the lines above are what running changed"
}
step "done"
