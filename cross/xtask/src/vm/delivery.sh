# What a package installed, in a machine with a network: enrols at the fleet server on the host, learns a program there, and
# tells of an attack. Any step that fails ends this with the agent's log.
fail() {
    echo "FAILED: $1"
    cat /tmp/agent.log
    exit 1
}

for module in virtio virtio_ring virtio_mmio failover net_failover virtio_net; do
    # Some are built in.
    [ ! -e /modules/$module.ko ] || insmod /modules/$module.ko || fail "loading $module"
done
interface=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)
[ -n "$interface" ] || fail "no network interface"
ip addr add 10.0.2.15/24 dev "$interface" && ip link set "$interface" up || fail "no network"

behaveguard --version
behaveguard config check || fail "the packaged configuration"
behaveguard enroll --token /etc/token --device vm-arm64 || fail "enrolment"
sh /bin/gateway.sh &
BEHAVEGUARD_WINDOW=1s BEHAVEGUARD_HEARTBEAT=2s BEHAVEGUARD_CPU_BUDGET=unlimited behaveguard run >/tmp/agent.log 2>&1 &
running=$!
tries=0
until behaveguard status --json 2>/dev/null | tr -d ' \n' | grep -q '"script":"/bin/gateway.sh"},"state":"ACTIVE"'; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail "no baseline came"
    kill -0 $running 2>/dev/null || fail "the agent ended"
    sleep 1
done
echo "ok: the fleet's baseline is active"
behaveguard status | grep -E '^confined|MiB'
sleep 3
touch /tmp/act
tries=0
until behaveguard alerts --severity HIGH | grep -q shadow; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || fail "no alert"
    sleep 1
done
echo "ok: an alert"
# The host says whether it came, and waits for the agent's last word.
kill $running
wait $running || fail "the agent ended with an error"
echo "ok: it ends in order"
