//! A PostgreSQL server for tests: on loopback, with TLS and a password, gone at the end.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::Process;
use crate::{Failed, free_port, wait_for};

/// It refuses to run as root.
pub const AS_USER: [&str; 3] = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];

/// Its password, with all that a password file writes otherwise.
const PASSWORD: &str = r"se:cr\et";
const PASSFILE_LINE: &str = r"localhost:*:*:postgres:se\:cr\\et";

/// A server that runs.
#[derive(Debug)]
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Makes one with an authority of its own for TLS, and starts it.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub fn start() -> Result<Self, Failed> {
        let failed = |error: std::io::Error| Failed::new("making a PostgreSQL server", error);
        let dir = tempfile::tempdir().map_err(failed)?;
        // The server's user has to get through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        let mut server = Self { dir, bin: programs()?, port: free_port()?, process: None };
        server.make()?;
        server.restart()?;
        Ok(server)
    }

    fn make(&self) -> Result<(), Failed> {
        let home = self.dir.path().join("home");
        let failed = |error: std::io::Error| Failed::new(home.display(), error);
        fs::create_dir(&home).map_err(failed)?;
        fs::write(home.join("password"), PASSWORD).map_err(failed)?;
        fs::write(self.passfile(), PASSFILE_LINE).map_err(failed)?;
        fs::set_permissions(self.passfile(), fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let script = format!(
            "cd {0} && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem && \
             openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr && \
             printf 'subjectAltName=DNS:localhost' > names && \
             openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -extfile names -out server.pem && \
             chmod 600 server.key && chmod 644 ca.pem && chown -R postgres {0}",
            home.display()
        );
        run(Command::new("sh").args(["-c", &script]))?;
        run(Command::new("setpriv")
            .args(AS_USER)
            .arg(self.bin.join("initdb"))
            .args(["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--pwfile"])
            .arg(home.join("password"))
            .arg("-D")
            .arg(home.join("data")))
    }

    fn passfile(&self) -> PathBuf {
        self.dir.path().join("passwords")
    }

    /// Starts it, again after [`Postgres::kill`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<(), Failed> {
        let home = self.dir.path().join("home");
        let file = |name: &str| home.join(name).display().to_string();
        let (server, port) = (self.bin.join("postgres").display().to_string(), self.port.to_string());
        let mut arguments: Vec<String> = AS_USER.map(str::to_owned).to_vec();
        arguments.extend([
            server,
            "-D".into(),
            file("data"),
            "-p".into(),
            port,
            "-h".into(),
            "127.0.0.1".into(),
        ]);
        arguments.extend(["-k".into(), home.display().to_string()]);
        for setting in [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", file("server.pem")),
            format!("ssl_key_file={}", file("server.key")),
        ] {
            arguments.extend(["-c".into(), setting]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = self.dir.path().join("postgres.log");
        let mut process = Process::start("/usr/bin/setpriv".as_ref(), &arguments, &log, Stdio::null())?;
        wait_for("the start of PostgreSQL", Duration::from_secs(30), || {
            process.check()?;
            // The port is open a moment before it answers.
            let ready = Command::new(self.bin.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status();
            Ok((TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && ready.is_ok_and(|status| status.success()))
            .then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// The address of a new, empty database, for `[store] postgres`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn database(&self) -> Result<String, Failed> {
        database_on(&self.address())
    }

    /// The address of the database that every server has.
    #[must_use]
    pub fn address(&self) -> String {
        let authority = self.dir.path().join("home/ca.pem");
        format!(
            "postgres://postgres@localhost:{}/postgres?sslmode=require&sslrootcert={}&passfile={}",
            self.port,
            authority.display(),
            self.passfile().display()
        )
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<(), Failed> {
        let mut process = self.process.take().ok_or_else(|| Failed("PostgreSQL does not run".into()))?;
        // What it calls an immediate shutdown: nothing is written down, its processes end.
        process.signal(Signal::QUIT)?;
        wait_for("the end of PostgreSQL", Duration::from_secs(20), || Ok(process.check().err().map(|_| ())))
    }
}

/// Where Debian puts its programs.
///
/// # Errors
/// When it is not installed.
pub fn programs() -> Result<PathBuf, Failed> {
    let mut versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = versions.next().ok_or_else(|| Failed("PostgreSQL is not installed".into()))?;
    Ok(version.path().join("bin"))
}

/// The address of a new, empty database of the server at this address.
///
/// # Errors
/// When it cannot be made.
pub fn database_on(address: &str) -> Result<String, Failed> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name = format!("fleet_{}_{}", std::process::id(), MADE.fetch_add(1, Relaxed));
    run(Command::new("createdb").args(["--maintenance-db", address, &name]))?;
    Ok(address.replace("/postgres?", &format!("/{name}?")))
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing of it is kept, so nothing is lost when it did not run.
        let _ = self.kill();
    }
}

fn run(command: &mut Command) -> Result<(), Failed> {
    let output = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| Failed::new(&name, error))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Failed(format!(
            "{name} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )))
    }
}
