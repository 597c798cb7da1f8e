//! A baseline as one signed file: models, calibration and what was learned for one program.
//!
//! ```text
//! "BGB1" | postcard(Envelope { manifest, signatures, parts })
//! ```
//! The signature covers `"behaveguard-bundle-v1\0"` and the manifest's bytes; the manifest holds each part's SHA-256.

use core::ops::Range;

use data_encoding::HEXLOWER;
use ring::{digest, signature};
use serde::{Deserialize, Serialize};

use crate::calibration::Calibration;
use crate::program::{ProgramId, hex};
use crate::schema;

/// The largest bundle a device accepts, in bytes.
pub const BUNDLE_MAX: usize = 8 * 1024 * 1024;

const MAGIC: &[u8; 4] = b"BGB1";
const CONTEXT: &[u8] = b"behaveguard-bundle-v1\0";

/// What a bundle says about itself; the signed part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`schema::SCHEMA_ID`] of the vectors it was trained on.
    pub schema: u32,
    /// For which program.
    pub program: ProgramId,
    /// Counts up from 1 per program.
    pub generation: u64,
    /// Seconds since 1970 before which it is not valid.
    pub not_before_unix_s: u64,
    /// Seconds since 1970 from which it is no longer valid.
    pub expires_unix_s: u64,
    /// The parts, in the order in which they follow.
    pub parts: Vec<PartInfo>,
    /// How raw detector outputs become a score.
    pub calibration: Calibration,
    /// Traits seen while learning, sorted; see [`crate::novelty`].
    pub traits: Vec<u64>,
    /// Where it comes from.
    pub training: TrainingFacts,
}

impl Manifest {
    /// Of a program of which nothing is known yet, valid in this time, seconds since 1970.
    #[must_use]
    pub fn new(program: ProgramId, generation: u64, valid_unix_s: Range<u64>) -> Self {
        Self {
            schema: schema::SCHEMA_ID,
            program,
            generation,
            not_before_unix_s: valid_unix_s.start,
            expires_unix_s: valid_unix_s.end,
            parts: Vec::new(),
            calibration: Calibration::default(),
            traits: Vec::new(),
            training: TrainingFacts::default(),
        }
    }
}

/// One part's name, size and hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartInfo {
    /// `vae.onnx`, `lstm.onnx`, `prototypes.bin` or `grams.bin`.
    pub name: String,
    /// Bytes.
    pub size: u32,
    /// SHA-256.
    pub sha256: [u8; 32],
}

/// Facts about the training, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingFacts {
    /// Windows used to fit, for the residual variance, and for calibration.
    pub windows: [u32; 3],
    /// Mean of every feature over all windows, as (index, mean) where it is not zero.
    pub means: Vec<(u16, f32)>,
    /// 99 % quantile of every feature over all windows, as (index, value) where it is not zero.
    pub highs: Vec<(u16, f32)>,
    /// Seed of the initial weights.
    pub seed: u64,
    /// When, seconds since 1970.
    pub trained_unix_s: u64,
}

/// A manifest and its parts, checked. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct Verified {
    manifest: Manifest,
    parts: Vec<Vec<u8>>,
}

impl Verified {
    /// The signed manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A part by name.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&[u8]> {
        let at = self.manifest.parts.iter().position(|part| part.name == name)?;
        self.parts.get(at).map(Vec::as_slice)
    }
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BundleError {
    /// Not a bundle, or cut short.
    #[error("not a bundle file, or a damaged one; fetch it again")]
    Malformed,
    /// Over [`BUNDLE_MAX`].
    #[error("a bundle of {0} bytes is over the limit of {BUNDLE_MAX}")]
    TooLarge(usize),
    /// No signature in it.
    #[error("the bundle is not signed")]
    Unsigned,
    /// Signed, but by no key in the keyring.
    #[error("signed by key {0}, which this device does not trust")]
    UnknownKey(String),
    /// The signature does not fit the manifest.
    #[error("the signature by key {0} does not fit: the manifest was changed after it was signed")]
    BadSignature(String),
    /// A part does not have the signed hash.
    #[error("part `{0}` was changed after the bundle was signed")]
    PartChanged(String),
    /// For vectors of another schema.
    #[error("made for feature schema {found:#010x}, this build has {}; update the agent or retrain", format_args!("{:#010x}", schema::SCHEMA_ID))]
    Schema {
        /// The schema in the manifest.
        found: u32,
    },
    /// For another program.
    #[error("made for {found}, offered for {wanted}")]
    Program {
        /// The program in the manifest.
        found: String,
        /// The program it was offered for.
        wanted: String,
    },
    /// Not newer than the active one.
    #[error("generation {offered} is not newer than {active}, which is active")]
    Older {
        /// The bundle's generation.
        offered: u64,
        /// The active generation.
        active: u64,
    },
    /// Before its time.
    #[error("not valid before {0} (seconds since 1970); check the device's clock")]
    NotYetValid(u64),
    /// After its time.
    #[error("expired at {0} (seconds since 1970); ask the fleet for a new one")]
    Expired(u64),
}

/// A public key that may sign bundles and orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads one from 64 lower-case hexadecimal digits; `None` when it is anything else.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok().map(Self)
    }

    /// The first 8 bytes of the key's SHA-256.
    #[must_use]
    pub fn id(&self) -> [u8; 8] {
        let mut id = [0; 8];
        id.copy_from_slice(&sha256(&self.0)[..8]);
        id
    }

    /// Whether this key made the signature.
    pub(crate) fn verifies(&self, message: &[u8], signed: &[u8]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, self.0).verify(message, signed).is_ok()
    }
}

/// The public keys whose bundles and orders a device trusts.
#[derive(Clone, Debug, Default)]
pub struct Keyring(pub heapless::Vec<PublicKey, 8>);

/// The private key that signs bundles and orders.
pub struct SigningKey(signature::Ed25519KeyPair);

impl SigningKey {
    /// Makes a new key, as PKCS#8 bytes for [`SigningKey::from_pkcs8`].
    ///
    /// # Panics
    /// When the system has no randomness.
    #[must_use]
    pub fn generate_pkcs8() -> Vec<u8> {
        let random = ring::rand::SystemRandom::new();
        let document = signature::Ed25519KeyPair::generate_pkcs8(&random);
        document.expect("the system gives random bytes").as_ref().to_vec()
    }

    /// Reads a private key; `None` when it is not an Ed25519 PKCS#8 document.
    #[must_use]
    pub fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        signature::Ed25519KeyPair::from_pkcs8(bytes).ok().map(Self)
    }

    /// The public half.
    ///
    /// # Panics
    /// Never: an Ed25519 public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        use signature::KeyPair as _;
        let bytes = self.0.public_key().as_ref();
        PublicKey(bytes.try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    /// Signs what begins with a context of its own, so that a signature of one kind is never good for another.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    manifest: Vec<u8>,
    signatures: Vec<([u8; 8], Vec<u8>)>,
    parts: Vec<Vec<u8>>,
}

/// Writes and signs a bundle. `manifest.parts` is filled in from `parts`.
///
/// # Panics
/// Never: the types written always have a postcard form.
#[must_use]
pub fn seal(mut manifest: Manifest, parts: Vec<(String, Vec<u8>)>, key: &SigningKey) -> Vec<u8> {
    manifest.parts = parts
        .iter()
        .map(|(name, bytes)| PartInfo { name: name.clone(), size: len_u32(bytes), sha256: sha256(bytes) })
        .collect();
    let manifest = postcard::to_stdvec(&manifest).expect("a manifest has a postcard form");
    let signed = key.sign(&[CONTEXT, &manifest].concat());
    let envelope = Envelope {
        manifest,
        signatures: vec![(key.public().id(), signed)],
        parts: parts.into_iter().map(|(_, bytes)| bytes).collect(),
    };
    let mut out = MAGIC.to_vec();
    out.extend(postcard::to_stdvec(&envelope).expect("an envelope has a postcard form"));
    out
}

/// What a bundle is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The program it is offered for.
    pub program: &'a ProgramId,
    /// The active generation of that program; 0 for none.
    pub active_generation: u64,
    /// Wall clock, seconds since 1970.
    pub now_unix_s: u64,
}

/// Checks a bundle from its bytes: form, signature, parts, schema, program, generation, time, in this order.
///
/// # Errors
/// One [`BundleError`] per reason to refuse.
pub fn verify(raw: &[u8], keys: &Keyring, expected: Expected<'_>) -> Result<Verified, BundleError> {
    let bundle = open(raw, keys)?;
    let manifest = &bundle.manifest;
    if manifest.program != *expected.program {
        return Err(BundleError::Program {
            found: manifest.program.to_string(),
            wanted: expected.program.to_string(),
        });
    }
    if manifest.generation <= expected.active_generation {
        return Err(BundleError::Older { offered: manifest.generation, active: expected.active_generation });
    }
    if expected.now_unix_s < manifest.not_before_unix_s {
        return Err(BundleError::NotYetValid(manifest.not_before_unix_s));
    }
    if expected.now_unix_s >= manifest.expires_unix_s {
        return Err(BundleError::Expired(manifest.expires_unix_s));
    }
    Ok(bundle)
}

/// Checks form, signature, parts and schema only: for a bundle that was already active on this device.
///
/// # Errors
/// As [`verify`], without program, generation and time.
pub fn open(raw: &[u8], keys: &Keyring) -> Result<Verified, BundleError> {
    if raw.len() > BUNDLE_MAX {
        return Err(BundleError::TooLarge(raw.len()));
    }
    let body = raw.strip_prefix(MAGIC).ok_or(BundleError::Malformed)?;
    let (envelope, rest) = postcard::take_from_bytes::<Envelope>(body).map_err(|_| BundleError::Malformed)?;
    if !rest.is_empty() {
        return Err(BundleError::Malformed);
    }
    check_signature(&envelope, keys)?;
    let (manifest, rest) =
        postcard::take_from_bytes::<Manifest>(&envelope.manifest).map_err(|_| BundleError::Malformed)?;
    if !rest.is_empty() || manifest.parts.len() != envelope.parts.len() {
        return Err(BundleError::Malformed);
    }
    for (info, bytes) in manifest.parts.iter().zip(&envelope.parts) {
        if sha256(bytes) != info.sha256 {
            return Err(BundleError::PartChanged(info.name.clone()));
        }
    }
    if manifest.schema != schema::SCHEMA_ID {
        return Err(BundleError::Schema { found: manifest.schema });
    }
    Ok(Verified { manifest, parts: envelope.parts })
}

fn check_signature(envelope: &Envelope, keys: &Keyring) -> Result<(), BundleError> {
    let (first, _) = envelope.signatures.first().ok_or(BundleError::Unsigned)?;
    let known = envelope
        .signatures
        .iter()
        .find_map(|(id, signed)| keys.0.iter().find(|key| key.id() == *id).map(|key| (key, id, signed)));
    let (key, id, signed) = known.ok_or_else(|| BundleError::UnknownKey(hex(first)))?;
    let message = [CONTEXT, &envelope.manifest].concat();
    if key.verifies(&message, signed) { Ok(()) } else { Err(BundleError::BadSignature(hex(id))) }
}

/// SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn len_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a part is far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> ProgramId {
        ProgramId { unit: "gw.service".into(), exe: "/usr/bin/gw".into(), script: None }
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap()
    }

    fn sealed(generation: u64, key: &SigningKey) -> Vec<u8> {
        let manifest = Manifest {
            schema: schema::SCHEMA_ID,
            program: program(),
            generation,
            not_before_unix_s: 100,
            expires_unix_s: 200,
            parts: vec![],
            calibration: Calibration::default(),
            traits: vec![1, 2],
            training: TrainingFacts::default(),
        };
        seal(manifest, vec![("vae.onnx".into(), vec![7; 40])], key)
    }

    fn check(raw: &[u8], trusted: &SigningKey, active_generation: u64, now: u64) -> Result<u64, BundleError> {
        let keys = Keyring(heapless::Vec::from_slice(&[trusted.public()]).unwrap());
        let program = program();
        let expected = Expected { program: &program, active_generation, now_unix_s: now };
        verify(raw, &keys, expected).map(|bundle| bundle.manifest().generation)
    }

    #[test]
    fn a_bundle_is_good_only_newer_and_in_its_time() {
        let key = key();
        let raw = sealed(3, &key);
        assert_eq!(check(&raw, &key, 2, 150), Ok(3));
        assert_eq!(check(&raw, &key, 3, 150), Err(BundleError::Older { offered: 3, active: 3 }));
        assert_eq!(check(&raw, &key, 2, 99), Err(BundleError::NotYetValid(100)));
        assert_eq!(check(&raw, &key, 2, 200), Err(BundleError::Expired(200)));
    }

    #[test]
    fn a_bundle_of_another_key_or_of_none_is_refused() {
        let (mine, other) = (key(), key());
        let refused = check(&sealed(1, &other), &mine, 0, 150);
        assert_eq!(refused, Err(BundleError::UnknownKey(hex(&other.public().id()))));
        let mut envelope: Envelope = postcard::from_bytes(&sealed(1, &mine)[4..]).unwrap();
        envelope.signatures.clear();
        let unsigned = [MAGIC.to_vec(), postcard::to_stdvec(&envelope).unwrap()].concat();
        assert_eq!(check(&unsigned, &mine, 0, 150), Err(BundleError::Unsigned));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let key = key();
        let raw = sealed(1, &key);
        for at in 0..raw.len() {
            assert!(check(&raw[..at], &key, 0, 150).is_err(), "{at} bytes were enough");
            for bit in 0..8 {
                let mut changed = raw.clone();
                changed[at] ^= 1 << bit;
                assert!(check(&changed, &key, 0, 150).is_err(), "bit {bit} of byte {at} was not signed");
            }
        }
    }

    #[test]
    fn a_changed_part_is_named() {
        let key = key();
        let mut raw = sealed(1, &key);
        *raw.last_mut().unwrap() ^= 1;
        assert_eq!(check(&raw, &key, 0, 150), Err(BundleError::PartChanged("vae.onnx".into())));
    }

    #[test]
    fn a_bundle_for_another_schema_is_refused() {
        let key = key();
        let manifest = Manifest {
            schema: schema::SCHEMA_ID ^ 1,
            program: program(),
            generation: 1,
            not_before_unix_s: 0,
            expires_unix_s: 200,
            parts: vec![],
            calibration: Calibration::default(),
            traits: vec![],
            training: TrainingFacts::default(),
        };
        let raw = seal(manifest, vec![], &key);
        assert_eq!(check(&raw, &key, 0, 1), Err(BundleError::Schema { found: schema::SCHEMA_ID ^ 1 }));
    }
}
