#!/bin/sh
# Runs as root in a fresh Debian, in namespaces of its own: installs both packages, starts what they install, upgrades,
# removes and purges, and says what is not as it should be.
set -eu
step() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true

step install
dpkg -i /packages/*.deb
behaveguard --version
systemctl is-enabled behaveguard.service behaveguard-fleet.service
systemd-analyze verify /usr/lib/systemd/system/behaveguard.service /usr/lib/systemd/system/behaveguard-fleet.service
test -s /usr/share/man/man1/behaveguard-whitelist-add.1.gz || fail "no manual pages"
test "$(stat -c %a:%U /etc/behaveguard/agent.toml)" = 600:root || fail "others may read the configuration"
behaveguard config check

step "start, with the capabilities of the unit"
behaveguard-fleet run --state /var/lib/behaveguard-fleet --config /etc/behaveguard-fleet/fleet.toml &
fleet=$!
tries=0
until behaveguard-fleet token create --state /var/lib/behaveguard-fleet --device packaged > /root/token 2>/dev/null; do
    tries=$((tries + 1)); test $tries -lt 50 || fail "the fleet server does not come up"; sleep 0.2
done
unit=/usr/lib/systemd/system/behaveguard.service
capabilities=$(sed -n 's/^CapabilityBoundingSet=//p' $unit | tr 'A-Z ' 'a-z,' | sed 's/cap_/+/g')
limits="--bounding-set=-all,$capabilities --inh-caps=-all --no-new-privs"
setpriv $limits behaveguard enroll --token /root/token --device packaged
setpriv $limits behaveguard run &
agent=$!
tries=0
until behaveguard status --json 2>/dev/null | grep -q '"online": true'; do
    tries=$((tries + 1)); test $tries -lt 100 || fail "the agent has no link"; sleep 0.2
done
behaveguard status --json | grep -q '"calls_refused": true' || fail "the agent gave nothing up"
behaveguard status | head -n 20
kill $agent; wait $agent || fail "the agent did not end well"
kill $fleet; wait $fleet || fail "the fleet server did not end well"

step upgrade
echo 'heartbeat = "90s"' >> /etc/behaveguard/agent.toml
dpkg -i /packages/behaveguard_*.deb
grep -q '^heartbeat = "90s"' /etc/behaveguard/agent.toml || fail "an upgrade changed the configuration"

step remove
dpkg --remove behaveguard behaveguard-fleet
test -e /var/lib/behaveguard/identity.json || fail "removing took the identity away"
! systemctl is-enabled behaveguard.service 2>/dev/null || fail "removing left it enabled"

step purge
dpkg --purge behaveguard behaveguard-fleet
left=$(find / -xdev -name '*behaveguard*' -not -path '/packages/*' -not -path '/proc/*' -not -path '/sys/*')
test -z "$left" || fail "purging left: $left"
echo "== all right"
