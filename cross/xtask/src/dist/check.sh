# Runs as root on a Debian that systemd has booted: installs both packages, uses what they install as an operator would,
# upgrades, removes and purges, and says what is not as it should be.
set -eu
step() { echo "== $*"; }
fail() {
    echo "FAILED: $*"
    journalctl --no-pager --lines 40 --unit behaveguard --unit behaveguard-fleet
    exit 1
}
# Asks again until the command succeeds: `within SECONDS WHAT COMMAND…`.
within() {
    tries=$1 what=$2
    shift 2
    until "$@" >/tmp/answer 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { cat /tmp/answer; fail "$what"; }
        sleep 1
    done
    echo "ok: $what"
}
status_has() { behaveguard status --json | tr -d ' \n' | grep -qE "$1"; }
of_unit() { systemctl show --value --property "$1" behaveguard; }
cgroup_file() { cat "/sys/fs/cgroup$(of_unit ControlGroup)/$1"; }
is_new_and_online() { [ "$(of_unit MainPID)" != "$1" ] && status_has '"online":true'; }
logged() { journalctl --no-pager --unit "$1" | grep -qi "$2"; }

step install
dpkg -i /packages/*.deb
behaveguard --version
systemctl is-enabled behaveguard.service behaveguard-fleet.service
systemd-analyze verify /usr/lib/systemd/system/behaveguard.service /usr/lib/systemd/system/behaveguard-fleet.service
test -s /usr/share/man/man1/behaveguard-whitelist-add.1.gz || fail "no manual pages"
test "$(stat -c %a:%U /etc/behaveguard/agent.toml)" = 600:root || fail "others may read the configuration"
behaveguard config check
within 60 "the fleet server runs" systemctl is-active behaveguard-fleet
waits_for_its_operator() { [ "$(of_unit Result):$(of_unit ExecMainStatus)" = exit-code:78 ]; }
within 30 "the agent says that nobody would be told, and is not started again and again" waits_for_its_operator
test "$(of_unit NRestarts)" = 0 || fail "it was started again all the same"

step "enrol, as docs/operations.md says"
make_token() { behaveguard-fleet token create --state /var/lib/behaveguard-fleet --device packaged >/root/token; }
within 30 "the fleet server makes a token" make_token
behaveguard enroll --token /root/token --device packaged
systemctl restart behaveguard
within 60 "the agent has a link" status_has '"online":true'
status_has '"calls_refused":true' || fail "the agent gave nothing up"
! status_has '"backend":""' || fail "a layer is not seen under the unit that is seen without"
behaveguard status | head -n 20
behaveguard doctor | head -n 30

step "a changed configuration, by reload"
# At the top: at the end it would be a key of the file's last table.
sed -i '1i heartbeat = "90s"' /etc/behaveguard/agent.toml
systemctl reload behaveguard
within 20 "the reload is in the journal" logged behaveguard "configuration was read again"
test "$(systemctl is-active behaveguard)" = active || fail "a reload ended the agent"

step "killed, and started again by systemd"
killed=$(of_unit MainPID)
kill -9 "$killed"
within 60 "it runs again and has a link" is_new_and_online "$killed"
within 30 "the fleet was told" logged behaveguard-fleet "device packaged: killed"

step "updated by its fleet, and a program that does not come back is left"
fleet=/var/lib/behaveguard-fleet
web=$(grep -o 'https://[^"]*' $fleet/addresses.json)
behaveguard-fleet build key --out /root/builder.key >/root/update.toml
# The file that `behaveguard init` writes has the table already, and nothing in it.
sed -i "/^\[update\]/a $(grep '^keys' /root/update.toml)" /etc/behaveguard/agent.toml
behaveguard config check
systemctl restart behaveguard
offer() {
    behaveguard-fleet build sign --key /root/builder.key --version "$1" "$2"
    behaveguard-fleet build add --state $fleet "$2"
}
begin_update() {
    curl --silent --fail --cacert $fleet/ca.pem --header "Authorization: Bearer $(cat $fleet/api.token)" --json \
        "{\"version\": \"$1\", \"group\": \"default\", \"plan\": {\"canary_percent\": 100, \"wait_s\": 10}}" "$web/api/v1/updates"
}
program_is() { [ "$(readlink "/proc/$(of_unit MainPID)/exe")" = "$1" ]; }
cp /usr/bin/behaveguard /root/new
printf x >>/root/new
offer 9.0.0 /root/new
within 90 "an update begins" begin_update 9.0.0
within 120 "systemd starts the new program" program_is /var/lib/behaveguard/agent/program
within 60 "the fleet was told" logged behaveguard-fleet "updated: version 9.0.0"
cp /usr/bin/false /root/bad
offer 10.0.0 /root/bad
within 90 "another begins when the first is done" begin_update 10.0.0
within 120 "the fleet was told that it did not come back" logged behaveguard-fleet "update_failed: version 10.0.0"
program_is /usr/bin/behaveguard || fail "the package's program does not run"
within 60 "it has a link" status_has '"online":true'

# What is simulated from here on is what the smallest Debian has.
dpkg --purge curl

step "memory below its limit, under attack"
# Half of what the unit allows: a gateway that is smaller than the one the unit was written for.
mkdir -p /etc/systemd/system/behaveguard.service.d
printf '[Service]\nMemoryHigh=infinity\nMemoryMax=48M\n' >/etc/systemd/system/behaveguard.service.d/small.conf
sed -i '1i memory_budget = "48MiB"' /etc/behaveguard/agent.toml
systemctl daemon-reload
systemctl restart behaveguard
within 60 "it runs in 48 MiB" status_has '"online":true'
restarts=$(of_unit NRestarts)
behaveguard simulate --all >/tmp/simulated 2>&1 || { cat /tmp/simulated; fail "the simulation"; }
tail -n 3 /tmp/simulated
# A thousand short processes are a thousand programs to look at.
i=0
while [ $i -lt 1000 ]; do /bin/true; i=$((i + 1)); done
sleep 35
status_has '"online":true' || fail "no link after the attack"
cgroup_file memory.events
cgroup_file memory.events | grep -q '^oom_kill 0$' || fail "the kernel killed it for its memory"
test "$(of_unit NRestarts)" = "$restarts" || fail "it was started again"
echo "ok: at most $(($(cgroup_file memory.peak 2>/dev/null || cgroup_file memory.current) / 1048576)) MiB of 48"

step upgrade
dpkg -i /packages/behaveguard_*.deb
grep -q '^heartbeat = "90s"' /etc/behaveguard/agent.toml || fail "an upgrade changed the configuration"
within 60 "it runs after the upgrade" status_has '"online":true'

step remove
dpkg --remove behaveguard behaveguard-fleet
test -e /var/lib/behaveguard/identity.json || fail "removing took the identity away"
! systemctl is-enabled behaveguard.service 2>/dev/null || fail "removing left it enabled"
! pgrep -x behaveguard || fail "removing left it running"

step purge
rm -r /etc/systemd/system/behaveguard.service.d
dpkg --purge behaveguard behaveguard-fleet
left=$(find / -xdev -name '*behaveguard*' -not -path '/packages/*' -not -path '/proc/*' -not -path '/sys/*')
test -z "$left" || fail "purging left: $left"
echo "== all right"
