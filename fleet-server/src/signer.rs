//! The key that signs baselines and orders: `bundle.key` (PKCS#8) in the state folder, or a file that the operator names and may
//! take away, on a medium of its own for instance. Its public half stays in the state folder, `bundle.pub` in hexadecimal, so
//! devices enrol also while it is away; what is to be signed waits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use models::bundle::{PublicKey, SigningKey};
use models::chain::chain;
use models::program::hex;
use zeroize::Zeroizing;

use crate::files::write_private;

const KEY: &str = "bundle.key";
const PUBLIC: &str = "bundle.pub";

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A file cannot be read or written.
    #[error("reading or writing {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It is not where the configuration says.
    #[error("the signing key {0} is away; what is to be signed waits until it is there again")]
    Away(PathBuf),
    /// It was never there, so its public half is not known either.
    #[error("the signing key {0} is not there; bring it for the first start")]
    Unknown(PathBuf),
    /// The one in the state folder was there, and is not any more.
    #[error(
        "the signing key {0} is gone; restore it, or name where it is by `signing_key`; or remove bundle.pub beside it, so that \
         another is made, and enrol every device again"
    )]
    Gone(PathBuf),
    /// The one in the state folder was not moved.
    #[error(
        "the signing key is still {here}; move it to {there}, which the configuration names, and start again"
    )]
    NotMoved {
        /// Where it is.
        here: PathBuf,
        /// Where it should be.
        there: PathBuf,
    },
    /// It is not an Ed25519 PKCS#8 document, or no public key.
    #[error("{0} is damaged; restore it from a backup")]
    Damaged(PathBuf),
    /// The devices trust another.
    #[error(
        "{0} is not the key that this fleet's devices trust; bring that one, its public half is in bundle.pub"
    )]
    Another(PathBuf),
}

/// Signs, or says why it cannot.
pub struct Signer {
    key: Key,
    public: PublicKey,
    /// Whether it was told that the key cannot be used.
    missed: AtomicBool,
}

enum Key {
    /// Read once.
    Here(Box<SigningKey>),
    /// Read each time, since it comes and goes.
    Elsewhere(PathBuf),
}

impl Signer {
    /// With the key of a state folder, which is made when it is missing, or the one in a file `elsewhere`.
    ///
    /// # Errors
    /// When the key is damaged, or another one than at the last start; when the one elsewhere was never there.
    pub fn open(state: &Path, elsewhere: Option<&Path>) -> Result<Self, SignerError> {
        let (here, public_path) = (state.join(KEY), state.join(PUBLIC));
        let known = known(&public_path)?;
        let Some(there) = elsewhere else {
            if !here.exists() {
                if known.is_some() {
                    return Err(SignerError::Gone(here));
                }
                write(&here, &Zeroizing::new(SigningKey::generate_pkcs8()))?;
            }
            let key = Box::new(read(&here)?);
            let public = settled(&public_path, known, key.public()).ok_or(SignerError::Another(here))??;
            return Ok(Self { key: Key::Here(key), public, missed: AtomicBool::new(false) });
        };
        if here.exists() {
            return Err(SignerError::NotMoved { here, there: there.into() });
        }
        let public = match (read(there), known) {
            (Ok(key), known) => settled(&public_path, known, key.public())
                .ok_or_else(|| SignerError::Another(there.into()))??,
            (Err(SignerError::Away(_)), Some(known)) => known,
            (Err(SignerError::Away(path)), None) => return Err(SignerError::Unknown(path)),
            (Err(error), _) => return Err(error),
        };
        Ok(Self { key: Key::Elsewhere(there.into()), public, missed: AtomicBool::new(false) })
    }

    /// What devices are told to trust.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Does something with the key.
    ///
    /// # Errors
    /// When it is away, damaged or another one.
    pub fn with<T>(&self, sign: impl FnOnce(&SigningKey) -> T) -> Result<T, SignerError> {
        match &self.key {
            Key::Here(key) => Ok(sign(key)),
            Key::Elsewhere(path) => {
                let fits = |key: &SigningKey| key.public() == self.public;
                let key = read(path).and_then(|key| {
                    if fits(&key) { Ok(key) } else { Err(SignerError::Another(path.clone())) }
                });
                self.tell(&key);
                Ok(sign(&key?))
            }
        }
    }

    /// Once when it cannot be used any more, and once when it can be again.
    fn tell(&self, key: &Result<SigningKey, SignerError>) {
        match key {
            Err(error) if !self.missed.swap(true, Relaxed) => log::warn!("{}", chain(error)),
            Ok(_) if self.missed.swap(false, Relaxed) => log::info!("the signing key is there again"),
            _ => {}
        }
    }

    /// Whether it could sign now.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), SignerError> {
        self.with(|_| ())
    }
}

/// The public half as of the last start; `None` when there was none that kept it.
fn known(path: &Path) -> Result<Option<PublicKey>, SignerError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            PublicKey::parse(text.trim()).map(Some).ok_or_else(|| SignerError::Damaged(path.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SignerError::File { path: path.to_owned(), source }),
    }
}

/// Keeps the public half; `None` when it is not the known one.
fn settled(
    path: &Path,
    known: Option<PublicKey>,
    public: PublicKey,
) -> Option<Result<PublicKey, SignerError>> {
    match known {
        Some(known) if known != public => None,
        Some(_) => Some(Ok(public)),
        None => Some(write(path, format!("{}\n", hex(&public.0)).as_bytes()).map(|()| public)),
    }
}

fn read(path: &Path) -> Result<SigningKey, SignerError> {
    match fs::read(path).map(Zeroizing::new) {
        Ok(pkcs8) => SigningKey::from_pkcs8(&pkcs8).ok_or_else(|| SignerError::Damaged(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SignerError::Away(path.to_owned())),
        Err(source) => Err(SignerError::File { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), SignerError> {
    write_private(path, bytes).map_err(|source| SignerError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_elsewhere_may_be_taken_away_and_no_other_takes_its_place() {
        let (state, medium) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (here, there) = (state.path().join(KEY), medium.path().join("fleet.key"));
        let public = Signer::open(state.path(), None).unwrap().public();
        let open = || Signer::open(state.path(), Some(&there));
        assert!(matches!(open(), Err(SignerError::NotMoved { .. })));
        fs::rename(&here, &there).unwrap();
        let signer = open().unwrap();
        assert_eq!(signer.public(), public);
        assert_eq!(signer.with(|key| key.public()).unwrap(), public);

        fs::rename(&there, medium.path().join("away")).unwrap();
        assert!(matches!(signer.check(), Err(SignerError::Away(_))));
        assert_eq!(open().unwrap().public(), public, "it starts without");
        // Without the word in the configuration no new key is made in its place.
        assert!(matches!(Signer::open(state.path(), None), Err(SignerError::Gone(_))));

        fs::write(&there, SigningKey::generate_pkcs8()).unwrap();
        assert!(matches!(signer.check(), Err(SignerError::Another(_))));
        assert!(matches!(open(), Err(SignerError::Another(_))));
        fs::write(&there, "no key").unwrap();
        assert!(matches!(signer.check(), Err(SignerError::Damaged(_))));
        fs::rename(medium.path().join("away"), &there).unwrap();
        signer.check().unwrap();
    }

    #[test]
    fn what_was_never_there_cannot_be_away() {
        let state = tempfile::tempdir().unwrap();
        let there = state.path().join("no/such/medium.key");
        assert!(matches!(Signer::open(state.path(), Some(&there)), Err(SignerError::Unknown(_))));
        fs::write(state.path().join(PUBLIC), "abc").unwrap();
        assert!(matches!(Signer::open(state.path(), Some(&there)), Err(SignerError::Damaged(_))));
    }
}
