# The whole agent in the machine: it runs, knows its programs, judges, sees an act that its baseline does not know, and
# keeps the alert although there is no fleet. Any step that fails ends this with the agent's log.
agent="behaveguard --config /etc/behaveguard/agent.toml"

fail() {
    echo "FAILED: $1"
    cat /tmp/agent.log /tmp/answer
    exit 1
}

# Asks again until the answer to `$agent $2`, written in one line, holds what it should.
await() {
    tries=0
    until $agent $2 >/tmp/answer 2>&1 && tr -d ' \n' </tmp/answer | grep -qE "$3"; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || fail "$1"
        kill -0 $running 2>/dev/null || fail "$1: the agent ended"
        sleep 1
    done
    echo "ok: $1"
}

mkdir -p /tmp/state
cp -r /etc/behaveguard/state/. /tmp/state
sh /bin/gateway.sh &
gateway=$!
$agent run >/tmp/agent.log 2>&1 &
running=$!

await "the baseline is active" "status --json" '"script":"/bin/gateway.sh"},"state":"ACTIVE","generation":1'
await "windows are judged" "status --json" '\["windows_judged",[1-9]'
await "no detector failed" "status --json" '\["detector_errors",0\]'
await "records come and none is damaged" "status --json" '\["kernel_open_received",[1-9].*\["kernel_decode_errors",0\]'
await "programs without a baseline are learned" "status --json" '"state":"LEARNING"'
touch /tmp/act
await "a first sensitive file is an alert" "alerts --json --severity HIGH" '"pid":'$gateway',.*/etc/shadow'
await "messages wait for the fleet" "status --json" '"online":false.*"outbox_waiting":[1-9]'
kill $running
wait $running || fail "the agent ended with an error"
grep -q 'messages wait in the outbox' /tmp/agent.log || fail "the agent did not end in order"
echo "ok: it ends in order"
kill $gateway
