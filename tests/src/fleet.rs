//! A fleet server with a state folder of its own, and its API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::postgres;
use crate::process::{Process, binary};
use crate::{Failed, free_port, wait_for};

/// In the environment: the address of a PostgreSQL server on which every fleet server has a database of its own, instead of a file.
pub const ON_POSTGRES: &str = "TEST_ON_POSTGRES";

/// A fleet server.
#[derive(Debug)]
pub struct Fleet {
    state: PathBuf,
    learn_windows: u32,
    process: Option<Process>,
}

impl Fleet {
    /// Starts one on free loopback ports and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(state: &Path, learn_windows: u32) -> Result<Self, Failed> {
        Self::start_with(state, learn_windows, "")
    }

    /// The same with a configuration file of this text.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with(state: &Path, learn_windows: u32, config: &str) -> Result<Self, Failed> {
        Self::start_on(state, learn_windows, config, "127.0.0.1")
    }

    /// The same on free ports of another address. They are its own: one of those that the kernel gives to whoever connects could
    /// be somebody else's by the time of [`Fleet::restart`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_on(state: &Path, learn_windows: u32, config: &str, address: &str) -> Result<Self, Failed> {
        let failed = |error| Failed::new("writing the configuration", error);
        fs::create_dir_all(state).map_err(failed)?;
        // Tests ask again and again until something is there.
        let rate =
            if config.contains("requests_per_minute") { "" } else { "requests_per_minute = 1000000\n" };
        let store = match std::env::var(ON_POSTGRES) {
            Ok(address) if !config.contains("[store]") => {
                format!("[store]\npostgres = {:?}\n", postgres::database_on(&address)?)
            }
            _ => String::new(),
        };
        fs::write(state.join("fleet.toml"), format!("{rate}{config}{store}")).map_err(failed)?;
        let mut fleet = Self { state: state.to_owned(), learn_windows, process: None };
        let free = || -> Result<String, Failed> { Ok(format!("{address}:{}", free_port()?)) };
        fleet.run(&free()?, &free()?)?;
        Ok(fleet)
    }

    /// One that does not run, for commands on its folder.
    #[must_use]
    pub fn stopped(state: &Path) -> Self {
        Self { state: state.to_owned(), learn_windows: 0, process: None }
    }

    /// Starts it again on its ports, after [`Fleet::kill`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<(), Failed> {
        let addresses = self.addresses()?;
        let text = |key: &str| addresses[key].as_str().unwrap_or_default().to_owned();
        self.run(&text("mqtt"), &text("web"))
    }

    /// Ends it as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.process.take().ok_or_else(|| Failed("the fleet server does not run".into()))?.kill()
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end, or with an error.
    pub fn stop(&mut self) -> Result<(), Failed> {
        self.process.take().map_or(Ok(()), Process::stop)
    }

    /// Halts it: it takes no further byte.
    ///
    /// # Errors
    /// When it does not run.
    pub fn halt(&self) -> Result<(), Failed> {
        let process = self.process.as_ref().ok_or_else(|| Failed("the fleet server does not run".into()))?;
        process.signal(Signal::STOP)
    }

    /// Makes an enrolment token for one device with the command that operators use.
    ///
    /// # Errors
    /// When the command fails.
    pub fn enrolment_token(&self, device: &str) -> Result<String, Failed> {
        self.command(&["token", "create", "--device", device])
    }

    /// Lets the devices of the group `default` give their fleet all that they learn of.
    ///
    /// # Errors
    /// When the command fails.
    pub fn opt_in(&self) -> Result<(), Failed> {
        let file = self.state.with_extension("samples.toml");
        fs::write(&file, "samples = 100\n").map_err(|error| Failed::new(file.display(), error))?;
        self.command(&["group", "configure", "default", &file.to_string_lossy()]).map(drop)
    }

    /// Runs one of the server's commands on its folder; gives what it prints.
    ///
    /// # Errors
    /// When the command fails.
    pub fn command(&self, arguments: &[&str]) -> Result<String, Failed> {
        let failed =
            |error: &dyn std::fmt::Display| Failed::new(format!("behaveguard-fleet {arguments:?}"), error);
        let output = Command::new(binary("behaveguard-fleet")?)
            .args(arguments)
            .arg("--state")
            .arg(&self.state)
            .output()
            .map_err(|error| failed(&error))?;
        if !output.status.success() {
            return Err(failed(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The address of the dashboard.
    ///
    /// # Errors
    /// When it never ran.
    pub fn url(&self) -> Result<String, Failed> {
        Ok(self.addresses()?["web_url"].as_str().unwrap_or_default().to_owned())
    }

    /// The API token.
    ///
    /// # Errors
    /// When it never ran.
    pub fn token(&self) -> Result<String, Failed> {
        let token = fs::read_to_string(self.state.join("api.token"));
        Ok(token.map_err(|error| Failed::new("reading the API token", error))?.trim().to_owned())
    }

    /// `GET /api/v1/<path>` with the token.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub fn get(&self, path: &str) -> Result<Value, Failed> {
        let (status, value) = self.ask(path, &self.token()?)?;
        if status == 200 { Ok(value) } else { Err(Failed(format!("GET {path} gave {status}: {value}"))) }
    }

    /// `GET /api/v1/<path>` with any token; gives status and body.
    ///
    /// # Errors
    /// When it does not answer with JSON.
    pub fn ask(&self, path: &str, token: &str) -> Result<(u16, Value), Failed> {
        let (status, body) = self.body(path, token)?;
        let value =
            serde_json::from_slice(&body).map_err(|error| Failed::new(format!("GET {path}"), error))?;
        Ok((status, value))
    }

    /// `GET /api/v1/<path>` with the token; gives status and body as it is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn file(&self, path: &str) -> Result<(u16, Vec<u8>), Failed> {
        self.body(path, &self.token()?)
    }

    fn body(&self, path: &str, token: &str) -> Result<(u16, Vec<u8>), Failed> {
        let url = format!("{}/api/v1/{path}", self.url()?);
        let failed = |error: &dyn std::fmt::Display| Failed::new(format!("GET {url}"), error);
        let mut answer = self
            .client()?
            .get(&url)
            .header("Authorization", format!("Bearer {token}"))
            .call()
            .map_err(|error| failed(&error))?;
        let body = answer.body_mut().read_to_vec().map_err(|error| failed(&error))?;
        Ok((answer.status().as_u16(), body))
    }

    /// Someone who asks again and again, on a connection that is kept.
    ///
    /// # Errors
    /// When it never ran.
    pub fn asker(&self) -> Result<Asker, Failed> {
        Ok(Asker { url: self.url()?, token: self.token()?, client: self.client()? })
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn id(&self) -> Result<u32, Failed> {
        self.process.as_ref().map(Process::id).ok_or_else(|| Failed("the fleet server does not run".into()))
    }

    /// Its resident memory in MiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_mib(&self) -> Result<f64, Failed> {
        let file = format!("/proc/{}/status", self.id()?);
        let status = fs::read_to_string(&file).map_err(|error| Failed::new(&file, error))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).ok_or_else(|| Failed(format!("{file} has no VmRSS")))
    }

    /// `POST /api/v1/<path>` with the token; gives status and body.
    ///
    /// # Errors
    /// When it does not answer with JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<(u16, Value), Failed> {
        self.send("POST", path, Some(body), &self.token()?)
    }

    /// Any request to `/api/v1/<path>` with any token; gives status and body, null when there is none.
    ///
    /// # Errors
    /// When it does not answer, or with something else than JSON.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: &str,
    ) -> Result<(u16, Value), Failed> {
        let url = format!("{}/api/v1/{path}", self.url()?);
        let failed = |error: &dyn std::fmt::Display| Failed::new(format!("{method} {url}"), error);
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(&url)
            .header("Authorization", format!("Bearer {token}"))
            .header("Content-Type", "application/json")
            .body(body.map_or_else(String::new, ToString::to_string))
            .map_err(|error| failed(&error))?;
        let mut answer = self.client()?.run(request).map_err(|error| failed(&error))?;
        let text = answer.body_mut().read_to_vec().map_err(|error| failed(&error))?;
        let value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&text).map_err(|error| failed(&error))?
        };
        Ok((answer.status().as_u16(), value))
    }

    /// A counter of `GET /api/v1/counters`.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn counter(&self, name: &str) -> Result<u64, Failed> {
        Ok(self.get("counters")?["counters"][name].as_u64().unwrap_or(0))
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// All alerts of a device, oldest first.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn alerts(&self, device: &str) -> Result<Vec<Value>, Failed> {
        let answer = self.get(&format!("alerts?limit=1000&after=0&device={device}"))?;
        Ok(answer["alerts"].as_array().cloned().unwrap_or_default())
    }

    /// Windows that it has of the first program that is learned; `None` when it does not answer, or has none.
    #[must_use]
    pub fn windows_collected(&self) -> Option<u64> {
        self.get("training").ok()?["training"][0]["windows_collected"].as_u64()
    }

    /// All events of a device's agent, oldest first.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn events(&self, device: &str) -> Result<Vec<Value>, Failed> {
        let answer = self.get(&format!("events?limit=1000&after=0&device={device}"))?;
        Ok(answer["events"].as_array().cloned().unwrap_or_default())
    }

    fn run(&mut self, mqtt: &str, web: &str) -> Result<(), Failed> {
        let state = self.state.to_string_lossy().into_owned();
        let windows = self.learn_windows.to_string();
        let config = self.state.join("fleet.toml").to_string_lossy().into_owned();
        let mut arguments = vec!["run", "--state", &state, "--config", &config];
        arguments.extend(["--mqtt", mqtt, "--web", web, "--learn-windows", &windows]);
        let log = self.state.join("fleet.log");
        let mut process = Process::start(&binary("behaveguard-fleet")?, &arguments, &log, Stdio::null())?;
        let id = process.id();
        wait_for("the start of the fleet server", Duration::from_secs(30), || {
            process.check()?;
            // A file of an earlier run names ports on which nobody answers.
            Ok(self.get("health").ok().map(|_| id))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Where devices connect.
    ///
    /// # Errors
    /// When it never ran.
    pub fn mqtt(&self) -> Result<String, Failed> {
        Ok(self.addresses()?["mqtt"].as_str().unwrap_or_default().to_owned())
    }

    fn addresses(&self) -> Result<Value, Failed> {
        let failed =
            |error: &dyn std::fmt::Display| Failed::new("reading the fleet server's addresses", error);
        let json = fs::read(self.state.join("addresses.json")).map_err(|error| failed(&error))?;
        serde_json::from_slice(&json).map_err(|error| failed(&error))
    }

    fn client(&self) -> Result<ureq::Agent, Failed> {
        let failed = |error: &dyn std::fmt::Display| Failed::new("reading the fleet's certificate", error);
        let pem = fs::read(self.state.join("ca.pem")).map_err(|error| failed(&error))?;
        let authority = Certificate::from_pem(&pem).map_err(|error| failed(&error))?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::new_with_certs(&[authority]))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(15)));
        Ok(config.build().new_agent())
    }
}

/// Someone who asks the API, on a connection that is kept.
#[derive(Debug)]
pub struct Asker {
    url: String,
    token: String,
    client: ureq::Agent,
}

impl Asker {
    /// `GET /api/v1/<path>`.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub fn get(&self, path: &str) -> Result<Value, Failed> {
        let url = format!("{}/api/v1/{path}", self.url);
        let failed = |error: &dyn std::fmt::Display| Failed::new(format!("GET {url}"), error);
        let request = self.client.get(&url).header("Authorization", format!("Bearer {}", self.token));
        let mut answer = request.call().map_err(|error| failed(&error))?;
        let body = answer.body_mut().read_to_vec().map_err(|error| failed(&error))?;
        if !answer.status().is_success() {
            return Err(Failed(format!(
                "GET {url} gave {}: {}",
                answer.status(),
                String::from_utf8_lossy(&body)
            )));
        }
        serde_json::from_slice(&body).map_err(|error| failed(&error))
    }
}
