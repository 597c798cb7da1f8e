//! The password of a PostgreSQL server from a file, in libpq's form: `host:port:database:user:password`, one server a line.
//! <https://www.postgresql.org/docs/current/libpq-pgpass.html>

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use postgres::Config;
use postgres::config::Host;

use super::StoreError;

const DEFAULT_PORT: u16 = 5432;

/// The password of the first line that fits the address.
///
/// # Errors
/// When the file cannot be read, others may read it, or no line fits.
pub(super) fn password(path: &Path, config: &Config) -> Result<Vec<u8>, StoreError> {
    let failed = |source| StoreError::File { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(StoreError::OpenPassfile(path.to_owned()));
    }
    let text = fs::read(path).map_err(failed)?;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(_)) | None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().unwrap_or(&DEFAULT_PORT).to_string();
    let user = config.get_user().unwrap_or_default();
    let wanted = [host.as_str(), port.as_str(), config.get_dbname().unwrap_or(user), user];
    find(&text, wanted).ok_or_else(|| StoreError::NoPassword { path: path.to_owned(), of: wanted.join(":") })
}

fn find(text: &[u8], wanted: [&str; 4]) -> Option<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.starts_with(b"#")).find_map(|line| {
        let fields = fields(line);
        let (password, keys) = fields.split_last()?;
        let fits = |(key, wanted): (&Vec<u8>, &str)| key == b"*" || key == wanted.as_bytes();
        (keys.len() == wanted.len() && keys.iter().zip(wanted).all(fits)).then(|| password.clone())
    })
}

/// The five fields of a line; `\` takes the next byte as it is.
fn fields(line: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = vec![Vec::new()];
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        let literal = match byte {
            b':' if fields.len() < 5 => {
                fields.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next().unwrap_or(byte),
            byte => byte,
        };
        if let Some(field) = fields.last_mut() {
            field.push(*literal);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [&str; 4] = ["db.example", "5432", "fleet", "bg"];

    #[test]
    fn the_first_line_of_a_password_file_that_fits_is_used() {
        let found = |text: &str| find(text.as_bytes(), WANTED).map(|raw| String::from_utf8(raw).unwrap());
        assert_eq!(found("db.example:5432:fleet:bg:secret\n").as_deref(), Some("secret"));
        assert_eq!(found("other:*:*:*:1\r\n#*:*:*:*:2\n*:*:*:bg:3\r\n*:*:*:*:4").as_deref(), Some("3"));
        assert_eq!(found(r"*:*:*:*:a\:b\\c:d").as_deref(), Some(r"a:b\c:d"));
        for none in
            ["", "\n", "secret", "*:*:*:other:1", "*:*:*:1", "db.example:543:fleet:bg:1", "db*:*:*:*:1"]
        {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn a_password_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgpass");
        fs::write(&path, "*:*:*:bg:secret\n").unwrap();
        let config: Config = "postgres://bg@db.example/fleet".parse().unwrap();
        let with = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            password(&path, &config)
        };
        assert!(matches!(with(0o644), Err(StoreError::OpenPassfile(_))));
        assert_eq!(with(0o600).unwrap(), b"secret");
        assert_eq!(with(0o400).unwrap(), b"secret");
        let other: Config = "postgres://other@db.example/fleet".parse().unwrap();
        let error = password(&path, &other).unwrap_err().to_string();
        assert!(error.ends_with("has no line for db.example:5432:fleet:other"), "{error}");
    }
}
