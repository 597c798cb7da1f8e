//! Signatures of an identity provider's tokens, by ring: for jsonwebtoken, which reads and checks the rest of them.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as Bad, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};

/// Those of public keys: a token that anybody could have made with what the provider publishes is none.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Makes ring what jsonwebtoken of this process verifies with.
pub(super) fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
        verifier_factory: verifier,
        key_utils: KeyUtils::new_unimplemented(),
    };
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Somebody else's is good as well.
        let _ = PROVIDER.install_default();
    });
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let is_known = ALGORITHMS.contains(algorithm) && algorithm.family() == key.family();
    if !is_known {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(Key { algorithm: *algorithm, kind: key.kind().clone() }))
}

struct Key {
    algorithm: Algorithm,
    kind: DecodingKeyKind,
}

impl JwtVerifier for Key {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Key {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Bad> {
        let is_good = match (&self.kind, rsa(self.algorithm), curve(self.algorithm)) {
            (DecodingKeyKind::RsaModulusExponent { n, e }, Some(how), _) => {
                RsaPublicKeyComponents { n, e }.verify(how, message, signature).is_ok()
            }
            (DecodingKeyKind::SecretOrDer(key), _, Some(how)) => {
                UnparsedPublicKey::new(how, key).verify(message, signature).is_ok()
            }
            _ => false,
        };
        if is_good { Ok(()) } else { Err(Bad::new()) }
    }
}

fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::RS256 => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn curve(algorithm: Algorithm) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match algorithm {
        Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED,
        Algorithm::EdDSA => &ED25519,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use jsonwebtoken::{Validation, decode};
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    /// What is signed, for a header that names this algorithm.
    fn message(algorithm: &str) -> String {
        let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        format!("{}.{}", part(json!({ "alg": algorithm })), part(json!({ "exp": 4_000_000_000_u64 })))
    }

    fn check(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<(), ErrorKind> {
        install();
        let read = decode::<Value>(token, key, &Validation::new(algorithm));
        read.map(drop).map_err(|error| error.kind().clone())
    }

    #[test]
    fn a_good_signature_is_taken_and_a_changed_one_or_another_key_is_not() {
        let random = SystemRandom::new();
        let ed =
            Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let (of_ed, of_ec) = (message("EdDSA"), message("ES256"));
        let cases = [
            (
                of_ed.clone(),
                ed.sign(of_ed.as_bytes()).as_ref().to_vec(),
                DecodingKey::from_ed_der(ed.public_key().as_ref()),
                Algorithm::EdDSA,
            ),
            (
                of_ec.clone(),
                ec.sign(&random, of_ec.as_bytes()).unwrap().as_ref().to_vec(),
                DecodingKey::from_ec_der(ec.public_key().as_ref()),
                Algorithm::ES256,
            ),
        ];
        for (message, mut signature, key, algorithm) in cases {
            let token = |signature: &[u8]| format!("{message}.{}", BASE64URL_NOPAD.encode(signature));
            assert_eq!(check(&token(&signature), &key, algorithm), Ok(()));
            signature[3] ^= 1;
            assert_eq!(check(&token(&signature), &key, algorithm), Err(ErrorKind::InvalidSignature));
        }
    }

    #[test]
    fn what_is_signed_with_what_everybody_knows_is_refused() {
        let random = SystemRandom::new();
        let ed =
            Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        let public = ed.public_key().as_ref();
        let message = message("HS256");
        let hmac =
            ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public), message.as_bytes());
        let token = format!("{message}.{}", BASE64URL_NOPAD.encode(hmac.as_ref()));
        let (as_public, as_secret) =
            (DecodingKey::from_ed_der(public), DecodingKey::from_secret(public).unwrap());
        for key in [&as_public, &as_secret] {
            for algorithm in [Algorithm::EdDSA, Algorithm::HS256] {
                assert_eq!(check(&token, key, algorithm), Err(ErrorKind::InvalidAlgorithm));
            }
        }
    }
}
