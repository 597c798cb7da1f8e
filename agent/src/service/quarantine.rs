//! A device that reaches its fleet only, where the operator allows that.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use models::chain::chain;
use models::wire::EventKind;

use super::Service;
use crate::clock;
use crate::quarantine::{Reachable, reachable, resolvers};

impl Service {
    /// Cuts the device off for a time, or anew, and says who wanted it.
    pub(super) fn quarantine_for(&mut self, for_s: u32, by: &str) -> Result<String, String> {
        let done = self.begin_quarantine(for_s, by);
        match &done {
            Ok(text) => self.event(EventKind::Quarantined, None, None, text.clone()),
            Err(reason) => log::error!("{by} wanted this device quarantined: {reason}"),
        }
        done
    }

    fn begin_quarantine(&mut self, for_s: u32, by: &str) -> Result<String, String> {
        if !self.config.quarantine.allowed {
            return Err("this device's own file does not allow it: see `quarantine.allowed`".into());
        }
        let prepared = self.watch.probe().denies_egress();
        let prepared = prepared.unwrap_or(Err("the agent gave it up at its start: restart it"));
        prepared.map_err(|reason| format!("egress cannot be denied here: {reason}"))?;
        // Written first: what does not outlast the agent is easily ended.
        self.quarantine
            .begin(for_s, by, clock::now())
            .map_err(|error| format!("it cannot be kept: {error}"))?;
        if let Err(error) = self.tell_kernel_of_quarantine() {
            self.quarantine.end();
            return Err(error);
        }
        Ok(format!("quarantined by {by} for {for_s} s: only the fleet is reached"))
    }

    /// Lets the device reach everything again, and says why.
    pub(super) fn end_quarantine(&mut self, why: &str) -> Result<String, String> {
        let held = self.quarantine.end();
        self.tell_kernel_of_quarantine()?;
        let Some(held) = held else { return Ok("it was not quarantined".into()) };
        let text = format!("the quarantine that {} wanted is over: {why}", held.by);
        self.event(EventKind::QuarantineEnded, None, None, text.clone());
        Ok(text)
    }

    /// Ends what is over by its time.
    pub(super) fn look_after_quarantine(&mut self) {
        if self.quarantine.held().is_some_and(|held| held.left_s(clock::now()) == 0)
            && let Err(error) = self.end_quarantine("its time is up")
        {
            log::error!("ending the quarantine: {error}");
        }
    }

    /// Holds what held when the last run ended, unless it is over or not allowed any more.
    pub(super) fn resume_quarantine(&mut self) {
        self.look_after_quarantine();
        let Some(held) = self.quarantine.held().cloned() else { return };
        let resumed = if self.config.quarantine.allowed {
            self.tell_kernel_of_quarantine()
        } else {
            self.end_quarantine("this device's own file does not allow it any more").map(drop)
        };
        match resumed {
            Ok(()) => log::warn!("quarantined by {}: {} s are left", held.by, held.left_s(clock::now())),
            Err(error) => log::error!("the quarantine that {} wanted does not hold: {error}", held.by),
        }
    }

    /// The link found the fleet at these addresses.
    pub(super) fn located(&mut self, addresses: BTreeSet<SocketAddr>) {
        match self.quarantine.found(addresses) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => log::error!("where the fleet is cannot be kept: {error}"),
        }
        if let Err(error) = self.tell_kernel_of_quarantine() {
            log::error!("what is reached in quarantine: {error}");
        }
    }

    pub(super) fn tell_kernel_of_quarantine(&mut self) -> Result<(), String> {
        let reached = self.quarantine.held().is_some().then(|| self.reachable());
        self.watch.probe_mut().quarantine(reached.as_ref()).map_err(|error| chain(&error))
    }

    fn reachable(&self) -> Reachable {
        let endpoints = self.member.as_ref().map(|member| member.identity.endpoints()).unwrap_or_default();
        let by_name = endpoints.iter().any(|(host, _)| host.parse::<IpAddr>().is_err());
        let resolvers = if by_name { resolvers() } else { Vec::new() };
        reachable(&self.config.quarantine.reachable, self.quarantine.fleet(), &resolvers)
    }
}
