//! Another program file for the agent: fetched on the fleet's word, if this device's own file trusts who made it.

use models::chain::chain;
use models::program_file::{self, is_older};
use models::wire::{EventKind, SignedProgramFile};

use super::Service;
use crate::clock;
use crate::updates::{Outcome, PROOF};
use crate::uplink::Wanted;

impl Service {
    /// Fetches a program file, to be started when it is here.
    pub(super) fn update(&mut self, signed: &SignedProgramFile) -> Result<String, String> {
        let keys = self.config.update.keyring();
        if keys.0.is_empty() {
            return Err("this device's own file trusts nobody to make its agent: see `update.keys`".into());
        }
        let file = program_file::open(signed, &keys).map_err(|error| chain(&error))?;
        let own = env!("CARGO_PKG_VERSION");
        if file.arch != std::env::consts::ARCH {
            return Err(format!("it is for {}, this device is {}", file.arch, std::env::consts::ARCH));
        }
        if self.program_file() == file.sha256 {
            return Ok(format!("version {} runs already", file.version));
        }
        if is_older(&file.version, own) {
            return Err(format!("version {} is older than {own}, which runs", file.version));
        }
        if !self.is_supervised {
            return Err("this agent was started by hand: nobody would start it again".into());
        }
        self.updates.want(signed).map_err(|error| format!("it cannot be kept: {error}"))?;
        self.fetch_update(signed)?;
        Ok(format!("version {} is fetched, {} KiB", file.version, file.size / 1024))
    }

    /// Runs the package's program again.
    pub(super) fn end_update(&mut self) -> Result<String, String> {
        self.updates.forget_wanted();
        if let Some(member) = &self.member {
            member.uplink.end_download();
        }
        if !self.updates.is_running() {
            return Ok("the package's program runs".into());
        }
        self.updates.give_up("the fleet took it back");
        self.ends_for_update = true;
        Ok("the package's program is started".into())
    }

    /// Goes on with what was being fetched when the last run ended, and tells what became of a program that was started.
    pub(super) fn resume_update(&mut self) {
        self.look_after_update();
        if let Some(signed) = self.updates.wanted()
            && let Err(error) = self.fetch_update(&signed)
        {
            log::error!("an update is not fetched: {error}");
            self.updates.forget_wanted();
        }
    }

    fn fetch_update(&mut self, signed: &SignedProgramFile) -> Result<(), String> {
        let keys = self.config.update.keyring();
        let file = program_file::open(signed, &keys).map_err(|error| chain(&error))?;
        let Some(member) = &self.member else { return Err("this device has no fleet".into()) };
        let wanted = Wanted { sha256: file.sha256, size: file.size, path: self.updates.part() };
        member.uplink.download(wanted).map_err(|error| format!("it cannot be kept: {error}"))
    }

    /// What was fetched is here, or never will be.
    pub(super) fn downloaded(&mut self, result: Result<(), String>) {
        let keys = self.config.update.keyring();
        let ready = result.and_then(|()| {
            let signed = self.updates.wanted().ok_or("nothing was asked for")?;
            let file = program_file::open(&signed, &keys).map_err(|error| chain(&error))?;
            self.updates.ready(&file).map_err(|error| error.to_string())?;
            Ok(file.version)
        });
        match ready {
            Ok(version) => {
                log::warn!("version {version} of the agent is here: ending, so that it is started");
                self.ends_for_update = true;
            }
            Err(reason) => {
                self.updates.forget_wanted();
                self.event(EventKind::UpdateFailed, None, None, format!("it was not fetched: {reason}"));
            }
        }
    }

    /// Whether a program that is being tried has come back, or will not.
    pub(super) fn look_after_update(&mut self) {
        let came_back = self.online && self.windows_ended > 0;
        match self.updates.news(came_back) {
            Some(Outcome::Runs(version)) => {
                let text = format!("version {version}, which the fleet gave, runs and is linked");
                self.event(EventKind::Updated, None, None, text);
            }
            Some(Outcome::Failed(reason)) => self.event(EventKind::UpdateFailed, None, None, reason),
            None => {}
        }
        let ran_ns = clock::boot_ns().saturating_sub(self.started_ns);
        if !came_back && ran_ns > clock::nanoseconds(PROOF) && self.updates.is_trial() {
            self.updates.give_up("it was not linked to the fleet in time");
            self.ends_for_update = true;
        }
    }

    /// SHA-256 of the program file that runs; zeros when it cannot be read.
    pub(super) fn program_file(&self) -> [u8; 32] {
        let mut sum = [0; 32];
        let _ = data_encoding::HEXLOWER.decode_mut(self.mark.program_file().as_bytes(), &mut sum);
        sum
    }
}
