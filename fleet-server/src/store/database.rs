//! Which database a server uses, and how each of its threads opens it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::sql::{Connection, Error, Session};
use super::{SEARCH_MAX, StoreError, passfile};
use crate::files;

/// Memory for the pages that the writing thread works on, in KiB.
const WRITER_CACHE_KIB: i64 = 64 * 1024;

/// Pages of 4 KiB in the write-ahead log before it is copied into the database.
const CHECKPOINT_PAGES: i64 = 8192;

/// Bytes that this log keeps of the disk, when whoever read for long has let it grow beyond.
const JOURNAL_KEPT: i64 = 2 * CHECKPOINT_PAGES * 4096;

/// For a PostgreSQL server to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Without a word from it for so long, it is gone.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// In the state folder: where the database is, for commands beside the server.
const POSTGRES_FILE: &str = "postgres";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Write,
    Read,
    Search,
}

/// Where the data is.
#[derive(Clone, Debug)]
pub struct Database(Arc<Place>);

#[derive(Debug)]
enum Place {
    /// A file, and its name for people.
    Sqlite(PathBuf, String),
    /// A server that others may use too.
    Postgres { config: Box<postgres::Config>, tls: Arc<ClientConfig>, name: String },
}

impl Database {
    /// `<dir>/fleet.db`, or with an address a PostgreSQL server; the address is kept in the folder for commands beside the server.
    ///
    /// # Errors
    /// When the address is none, or the file with it cannot be written.
    pub fn choose(dir: &Path, postgres: Option<&str>) -> Result<Self, StoreError> {
        let path = dir.join(POSTGRES_FILE);
        let failed = |source| StoreError::File { path: path.clone(), source };
        match postgres {
            Some(address) => {
                let database = Self::postgres(address)?;
                files::write_private(&path, address.as_bytes()).map_err(failed)?;
                Ok(database)
            }
            None => {
                if path.exists() {
                    fs::remove_file(&path).map_err(failed)?;
                }
                Ok(Self::sqlite(dir))
            }
        }
    }

    /// What the server of this folder used last.
    ///
    /// # Errors
    /// When what the folder says cannot be used.
    pub fn of_folder(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(POSTGRES_FILE);
        match fs::read_to_string(&path) {
            Ok(address) => Self::postgres(&address),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::sqlite(dir)),
            Err(source) => Err(StoreError::File { path, source }),
        }
    }

    fn sqlite(dir: &Path) -> Self {
        let path = dir.join("fleet.db");
        let name = path.display().to_string();
        Self(Arc::new(Place::Sqlite(path, name)))
    }

    /// A server by its address (`postgres://user:password@host:port/name?sslmode=require`). With TLS its certificate must be
    /// signed by an authority in the file that `sslrootcert` names; without `sslmode=require` it need not have TLS. Where the
    /// address has no password, the file that `passfile` names has it.
    ///
    /// # Errors
    /// When the address is none, or a file does not have what it is to have.
    pub fn postgres(address: &str) -> Result<Self, StoreError> {
        let (address, authority) = without(address.trim(), "sslrootcert");
        let (address, passwords) = without(&address, "passfile");
        let mut config: postgres::Config =
            address.parse().map_err(|error| StoreError::Address(Error::Postgres(error)))?;
        if let (None, Some(path)) = (config.get_password(), passwords) {
            config.password(passfile::password(Path::new(&path), &config)?);
        }
        // A server that vanishes without a word must not be waited for for hours.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.tcp_user_timeout(GONE_AFTER).keepalives_idle(GONE_AFTER);
        let mut roots = RootCertStore::empty();
        if let Some(path) = authority {
            let path = PathBuf::from(path);
            let read = CertificateDer::pem_file_iter(&path);
            let found = read.map(|all| all.flatten().collect::<Vec<_>>()).unwrap_or_default();
            if found.into_iter().map(|one| roots.add(one)).filter(Result::is_ok).count() == 0 {
                return Err(StoreError::NoAuthority(path));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = builder.map_err(StoreError::Tls)?.with_root_certificates(roots).with_no_client_auth();
        let name = format!(
            "{} of {}",
            config.get_dbname().or(config.get_user()).unwrap_or("default"),
            address.split('@').next_back().unwrap_or_default().split(['/', '?']).next().unwrap_or_default()
        );
        Ok(Self(Arc::new(Place::Postgres { config: Box::new(config), tls: Arc::new(tls), name })))
    }

    /// What it is, for people; without a password.
    pub(super) fn place(&self) -> &str {
        match &*self.0 {
            Place::Sqlite(_, name) | Place::Postgres { name, .. } => name,
        }
    }

    /// Whether other servers may use it too.
    pub(super) fn is_shared(&self) -> bool {
        matches!(*self.0, Place::Postgres { .. })
    }

    /// Opens it. Not from a task of tokio: the client of PostgreSQL drives a runtime of its own.
    pub(super) fn open(&self, purpose: Purpose) -> Result<Connection, StoreError> {
        let opened = match &*self.0 {
            Place::Sqlite(path, _) => sqlite(path, purpose),
            Place::Postgres { config, tls, .. } => postgres_session(config, tls, purpose),
        };
        opened.map_err(|source| StoreError::Open { place: self.place().to_owned(), source })
    }
}

fn sqlite(path: &Path, purpose: Purpose) -> Result<Connection, Error> {
    let opened = Connection::sqlite(path)?;
    let Some(connection) = opened.as_sqlite() else { return Ok(opened) };
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    if purpose == Purpose::Write {
        // All inner pages of the indexes stay in memory, and a checkpoint writes a page once that changed many times.
        connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        // What undoes one job of many: read by this process only, and not after it.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", JOURNAL_KEPT)?;
    } else {
        connection.pragma_update(None, "query_only", true)?;
    }
    Ok(opened)
}

fn postgres_session(
    config: &postgres::Config,
    tls: &ClientConfig,
    purpose: Purpose,
) -> Result<Connection, Error> {
    let connection = Connection::postgres(Session::connect(config, tls.clone())?);
    match purpose {
        // What was answered must survive a power cut, whatever the server's default is.
        Purpose::Write => connection.execute_batch("SET synchronous_commit = on")?,
        Purpose::Read => connection.execute_batch("SET default_transaction_read_only = on")?,
        Purpose::Search => connection.execute_batch(&format!(
            "SET default_transaction_read_only = on; SET statement_timeout = {}",
            SEARCH_MAX.as_millis()
        ))?,
    }
    Ok(connection)
}

/// Takes a parameter out of an address: libpq has it, the client that we use does not.
fn without(address: &str, key: &str) -> (String, Option<String>) {
    let Some((before, query)) = address.split_once('?') else { return (address.to_owned(), None) };
    let value = |pair: &str| Some(pair.strip_prefix(key)?.strip_prefix('=')?.to_owned());
    let found = query.split('&').find_map(value);
    let rest: Vec<_> = query.split('&').filter(|pair| value(pair).is_none()).collect();
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    (format!("{before}{query}"), found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_taken_out_of_the_address_and_the_password_is_not_told() {
        let address = "postgres://bg:secret@db.example:5432/fleet?sslmode=require&sslrootcert=/no/such.pem";
        let (rest, authority) = without(address, "sslrootcert");
        assert_eq!(rest, "postgres://bg:secret@db.example:5432/fleet?sslmode=require");
        assert_eq!(authority.as_deref(), Some("/no/such.pem"));
        assert_eq!(without(&rest, "ssl"), (rest.clone(), None), "another parameter");
        assert!(matches!(Database::postgres(address), Err(StoreError::NoAuthority(_))));
        assert_eq!(Database::postgres(&rest).unwrap().place(), "fleet of db.example:5432");
        assert!(matches!(Database::postgres("mysql://x"), Err(StoreError::Address(_))));
    }

    #[test]
    fn the_log_gives_back_what_it_grew_by_while_somebody_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fleet.db");
        let (writer, reader) =
            (sqlite(&file, Purpose::Write).unwrap(), sqlite(&file, Purpose::Read).unwrap());
        let (writer, reader) = (writer.as_sqlite().unwrap(), reader.as_sqlite().unwrap());
        writer.execute_batch("CREATE TABLE t(x)").unwrap();
        let write = |mib: u32| {
            for _ in 0..mib {
                writer.execute("INSERT INTO t VALUES (zeroblob(1048576))", []).unwrap();
            }
            i64::try_from(std::fs::metadata(dir.path().join("fleet.db-wal")).unwrap().len()).unwrap()
        };
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        assert!(write(100) > JOURNAL_KEPT);
        reader.execute_batch("COMMIT").unwrap();
        // One write copies it into the database, the next begins it anew.
        assert!(write(3) <= JOURNAL_KEPT);
    }
}
