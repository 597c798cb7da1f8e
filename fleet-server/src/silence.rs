//! Devices that are not heard any more: noticed here, because a stopped agent cannot tell.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use tokio::sync::watch;

use crate::clock;
use crate::config::Config;
use crate::hub::Event;
use crate::ingest::tell_event;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store;

/// How often is looked; a device is noticed at most this much later.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Whoever was not heard since is silent. 0, for nobody, while this server has not run for as long: what was not heard because it was
/// down is no silence.
pub(crate) fn heard_before_ms(config: &Config, started_ms: u64, now_ms: u64) -> u64 {
    let after_ms = u64::from(config.silent_after_s) * 1000;
    if now_ms.saturating_sub(started_ms) < after_ms { 0 } else { now_ms.saturating_sub(after_ms) }
}

/// Looks until the server stops.
pub(crate) async fn watch(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let after_ms = u64::from(shared.config.silent_after_s) * 1000;
    let every = LOOK_EVERY.min(Duration::from_millis(after_ms / 3));
    let started_ms = clock::unix_ms();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now_ms = clock::unix_ms();
        let heard_before_ms = heard_before_ms(&shared.config, started_ms, now_ms);
        if heard_before_ms == 0 || !shared.store.leads() {
            continue;
        }
        let (counters, events_max) = (Arc::clone(&shared.counters), shared.config.events_max);
        let noticed = shared
            .store
            .write(move |c| store::put_silent(c, &counters, heard_before_ms, now_ms, events_max))
            .await;
        match noticed {
            Ok(events) => {
                for event in events {
                    let device = DeviceId::parse(&event.device);
                    tell_event(&shared, event);
                    if let Ok(device) = device {
                        shared.hub.tell(Event::Device(device));
                    }
                }
            }
            Err(error) => log::error!("looking for silent devices: {}", chain(&error)),
        }
    }
}
