"""A mail server that wants TLS and a password, and writes each mail it takes into a folder.

usage: mail-server.py CERTIFICATE KEY FOLDER; prints its two ports: TLS at once, and STARTTLS
"""

import asyncio
import itertools
import pathlib
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

certificate, key, folder = sys.argv[1:]
numbers = itertools.count()


class Keep:
    async def handle_DATA(self, server, session, envelope):
        name = f"{next(numbers)}-{'tls' if server.transport.get_extra_info('ssl_object') else 'plain'}"
        head = f"{envelope.mail_from} {' '.join(envelope.rcpt_tos)}\n".encode()
        (pathlib.Path(folder) / name).write_bytes(head + envelope.content)
        return "250 kept"


def known(server, session, envelope, mechanism, data):
    good = data.login == b"behaveguard" and data.password == b"a secret"
    return AuthResult(success=good, handled=good)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    more = {"hostname": "localhost", "authenticator": known, "auth_required": True}
    # It does not take a connection that began with TLS for one, and would let nobody log in.
    at_once = lambda: SMTP(Keep(), auth_require_tls=False, **more)
    upgraded = lambda: SMTP(Keep(), tls_context=context, require_starttls=True, **more)
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(at_once, "127.0.0.1", 0, ssl=context),
        await loop.create_server(upgraded, "127.0.0.1", 0),
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
