#!/usr/bin/env python3
"""Prints every alert of a BehaveGuard fleet as it comes.

    ./subscribe.py HOST PORT ca.pem USER TOKEN [FILTER]

Needs paho-mqtt (Debian: python3-paho-mqtt). `behaveguard-fleet user add USER` makes the user and prints the token.
"""
import json
import ssl
import sys

import paho.mqtt.client as mqtt


def main():
    host, port, ca, user, token = sys.argv[1:6]
    wanted = sys.argv[6] if len(sys.argv) > 6 else "bg-feed/v1/alert-json/#"
    if hasattr(mqtt, "CallbackAPIVersion"):  # paho-mqtt 2
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION1, client_id=user)
    else:
        client = mqtt.Client(client_id=user)
    client.username_pw_set(user, token)
    client.tls_set(ca_certs=ca, cert_reqs=ssl.CERT_REQUIRED)

    def connected(client, _data, _flags, code):
        if code != 0:
            sys.exit(f"refused with code {code}: is the token still good?")
        client.subscribe(wanted, qos=1)

    def subscribed(_client, _data, _id, granted):
        if granted[0] >= 0x80:
            sys.exit(f"may not subscribe to {wanted}")
        print("listening", flush=True)

    def told(_client, _data, message):
        alert = json.loads(message.payload)
        print(alert["id"], alert["device"], alert["severity"], alert["summary"], flush=True)

    client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, told
    try:
        client.connect(host, int(port), keepalive=30)
    except OSError as error:
        sys.exit(f"no link to {host}:{port}: {error}")
    client.loop_forever()


if __name__ == "__main__":
    main()
