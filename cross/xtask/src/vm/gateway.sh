# The program that the agent has a baseline for. It reads a secret once /tmp/act is there.
while true; do
    read -r line </etc/hostname
    if [ -e /tmp/act ]; then
        read -r line </etc/shadow
    fi
    sleep 0.2
done
