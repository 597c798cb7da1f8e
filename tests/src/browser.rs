//! Chromium, driven over the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>) by its own driver.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::Process;
use crate::{Failed, wait_for};

const DRIVER: &str = "/usr/bin/chromedriver";

/// A browser window.
#[derive(Debug)]
pub struct Browser {
    session: String,
    http: ureq::Agent,
    _driver: Process,
}

impl Browser {
    /// Starts driver and browser without a screen; profile and logs go to `dir`.
    ///
    /// # Errors
    /// When chromium or its driver is missing or does not start.
    pub fn start(dir: &Path, width: u32, height: u32) -> Result<Self, Failed> {
        std::fs::create_dir_all(dir).map_err(|error| Failed::new(dir.display(), error))?;
        if !Path::new(DRIVER).exists() {
            return Err(Failed(format!(
                "{DRIVER} is missing: run this through `cargo xtask test`, which installs it"
            )));
        }
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(|error| Failed::new("finding a free port", error))?.port();
        let mut driver = Process::start(
            Path::new(DRIVER),
            &[&format!("--port={port}")],
            &dir.join("driver.log"),
            Stdio::null(),
        )?;
        let http = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        let base = format!("http://127.0.0.1:{port}");
        wait_for("the start of chromedriver", Duration::from_secs(20), || {
            driver.check()?;
            Ok(http.get(format!("{base}/status")).call().is_ok().then_some(()))
        })?;
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let size = format!("--window-size={width},{height}");
        // As root there is no sandbox; the others keep the browser from calling home.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            &profile,
            &size,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser = Self { session: format!("{base}/session"), http, _driver: driver };
        let made = browser.post("", &wanted)?;
        let id = made["sessionId"].as_str().ok_or_else(|| Failed(format!("starting chromium: {made}")))?;
        browser.session = format!("{base}/session/{id}");
        Ok(browser)
    }

    /// Opens a page.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self, url: &str) -> Result<(), Failed> {
        self.post("/url", &json!({ "url": url })).map(drop)
    }

    /// The value of a JavaScript expression in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn eval(&self, expression: &str) -> Result<Value, Failed> {
        self.post("/execute/sync", &json!({ "script": format!("return {expression}"), "args": [] }))
    }

    /// Runs JavaScript in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn run(&self, script: &str) -> Result<(), Failed> {
        self.post("/execute/sync", &json!({ "script": script, "args": [] })).map(drop)
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// When it is not within 20 s, on a quiet machine.
    pub fn wait(&self, expression: &str) -> Result<(), Failed> {
        wait_for(expression, Duration::from_secs(20), || Ok((self.eval(expression)? == true).then_some(())))
    }

    /// What the page complained about so far: messages of level SEVERE.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn complaints(&self) -> Result<Vec<Value>, Failed> {
        let log = self.post("/se/log", &json!({ "type": "browser" }))?;
        let lines = log.as_array().cloned().unwrap_or_default();
        Ok(lines.into_iter().filter(|line| line["level"] == "SEVERE").collect())
    }

    /// A picture of the window, base64 of PNG.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn picture(&self) -> Result<String, Failed> {
        let value = self.request("GET", "/screenshot", None)?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.request("POST", path, Some(body))
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failed> {
        let url = format!("{}{path}", self.session);
        let failed = |error: &dyn std::fmt::Display| Failed::new(format!("{method} {url}"), error);
        let answer = match body {
            Some(body) => self.http.post(&url).content_type("application/json").send(body.to_string()),
            None => self.http.get(&url).call(),
        };
        let mut answer = answer.map_err(|error| failed(&error))?;
        let text =
            answer.body_mut().with_config().limit(64 << 20).read_to_vec().map_err(|error| failed(&error))?;
        let mut value: Value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        if answer.status().is_success() { Ok(value["value"].take()) } else { Err(failed(&value)) }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends chromium; the driver follows.
        let _ = self.http.delete(&self.session).call();
    }
}
