"""An identity provider: Authlib's, on loopback with TLS, for one client that must use PKCE. Whoever types a name is that person.

usage: identity-provider.py CERTIFICATE KEY SECRET; prints its port

anna is in the group soc, carol in fleet-admins, which only the userinfo endpoint tells, bob in none. A name that ends in -nonce,
-audience, -issuer, -key or -late is anna's with a token that is bad in this.
"""

import dataclasses
import sys
import time

from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector, current_token
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import OpenIDCode
from flask import Flask, jsonify, request
from joserfc.jwk import ECKey, KeySet, RSAKey
from werkzeug.serving import make_server

certificate, key, secret = sys.argv[1:]
keys = {"rsa": RSAKey.generate_key(2048, {"kid": "rsa"}), "ec": ECKey.generate_key("P-256", {"kid": "ec"})}
foreign = RSAKey.generate_key(2048, {"kid": "rsa"})
codes, tokens = {}, {}
app = Flask(__name__)


@dataclasses.dataclass
class User:
    name: str

    def get_user_id(self):
        return self.name

    @property
    def flaw(self):
        return self.name.partition("-")[2]


class Client(ClientMixin):
    token_endpoint_auth_method = "client_secret_basic"

    def get_client_id(self):
        return "behaveguard"

    def get_default_redirect_uri(self):
        return None

    def get_allowed_scope(self, scope):
        return scope

    def check_redirect_uri(self, uri):
        return uri.startswith("https://127.0.0.1:") and uri.endswith("/api/v1/oidc/callback")

    def check_client_secret(self, given):
        return given == secret

    def check_endpoint_auth_method(self, method, endpoint):
        return method == self.token_endpoint_auth_method

    def check_response_type(self, kind):
        return kind == "code"

    def check_grant_type(self, kind):
        return kind == "authorization_code"


@dataclasses.dataclass
class Code(AuthorizationCodeMixin):
    user: User
    scope: str
    redirect_uri: str
    nonce: str
    code_challenge: str
    code_challenge_method: str

    def get_redirect_uri(self):
        return self.redirect_uri

    def get_scope(self):
        return self.scope

    def get_nonce(self):
        return self.nonce

    def get_auth_time(self):
        return None

    def get_acr(self):
        return None

    def get_amr(self):
        return None


@dataclasses.dataclass
class Token(TokenMixin):
    user: User

    def get_scope(self):
        return "openid profile"

    def is_expired(self):
        return False

    def is_revoked(self):
        return False


class Grant(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic"]

    def save_authorization_code(self, code, asked):
        sent = asked.payload.data
        given = ("redirect_uri", "nonce", "code_challenge", "code_challenge_method")
        codes[code] = Code(asked.user, asked.payload.scope, *(sent.get(name) for name in given))

    def query_authorization_code(self, code, client):
        return codes.get(code)

    def delete_authorization_code(self, used):
        for text in [text for text, code in codes.items() if code is used]:
            del codes[text]

    def authenticate_user(self, code):
        return code.user


class Identity(OpenIDCode):
    def exists_nonce(self, nonce, asked):
        return any(code.nonce == nonce for code in codes.values())

    def encode_id_token(self, token, asked):
        self.user = asked.user
        return super().encode_id_token(token, asked)

    def get_client_algorithm(self, client):
        return "ES256" if self.user.name == "carol" else "RS256"

    def get_encode_header(self, client):
        alg = self.get_client_algorithm(client)
        return {"alg": alg, "kid": "ec" if alg == "ES256" else "rsa"}

    def resolve_client_private_key(self, client):
        if self.user.flaw == "key":
            return foreign
        return keys[self.get_encode_header(client)["kid"]]

    def get_client_claims(self, client):
        now = int(time.time())
        return {
            "iss": "https://other.example.org" if self.user.flaw == "issuer" else issuer,
            "aud": ["somebody else" if self.user.flaw == "audience" else client.get_client_id()],
            "exp": now + (-600 if self.user.flaw == "late" else 600),
        }

    def get_authorization_code_claims(self, code):
        return {"nonce": "of another sign-in" if self.user.flaw == "nonce" else code.nonce}

    def generate_user_info(self, user, scope):
        return said(user, user.name != "carol")


class Bearer(BearerTokenValidator):
    def authenticate_token(self, text):
        return tokens.get(text)


def said(user, with_groups):
    own = user.name.partition("-")[0]
    groups = {"anna": ["everybody", "soc"], "bob": ["everybody"], "carol": ["fleet-admins"]}[own]
    claims = {"sub": "of " + user.name, "preferred_username": user.name.title()}
    return {**claims, "groups": groups} if with_groups else claims


def keep(token, asked):
    tokens[token["access_token"]] = Token(asked.user)


server = AuthorizationServer(app, query_client=lambda name: Client() if name == "behaveguard" else None, save_token=keep)
server.register_grant(Grant, [Identity(require_nonce=True), CodeChallenge(required=True)])
protected = ResourceProtector()
protected.register_token_validator(Bearer())


@app.get("/.well-known/openid-configuration")
def configuration():
    places = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys", "userinfo_endpoint": "/userinfo"}
    return jsonify({"issuer": issuer, **{name: issuer + path for name, path in places.items()}})


@app.get("/keys")
def public():
    return jsonify(KeySet(list(keys.values())).as_dict(private=False))


@app.get("/authorize")
def form():
    server.get_consent_grant(end_user=None)
    if not request.args.get("code_challenge"):
        return "PKCE is needed", 400
    return '<!doctype html><title>Who are you?</title><form method="post"><input name="name"><button>Go on</button></form>'


@app.post("/authorize")
def authorize():
    user = User(request.form["name"])
    grant = server.get_consent_grant(end_user=user)
    return server.create_authorization_response(grant=grant, grant_user=user)


@app.post("/token")
def token():
    return server.create_token_response()


@app.get("/userinfo")
@protected()
def userinfo():
    return jsonify(said(current_token.user, True))


http = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=(certificate, key))
issuer = f"https://localhost:{http.port}"
print(http.port, flush=True)
http.serve_forever()
