//! Drops what is older than the operator wants it kept, while nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use tokio::sync::watch;

use crate::clock;
use crate::server::Shared;
use crate::store::{self, StoreError};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Between two steps of one look: others write too.
const STEP_EVERY: Duration = Duration::from_millis(200);

const DAY_MS: u64 = 86_400_000;

/// Looks until the server stops; ends at once where nothing is to be dropped.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let Some(days) = shared.config.retain_days else { return };
    loop {
        if shared.store.leads()
            && let Err(error) = drop_older(&shared, u64::from(days) * DAY_MS, &stop).await
        {
            log::error!("dropping what is older than {days} days: {}", chain(&error));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn drop_older(shared: &Shared, kept_ms: u64, stop: &watch::Receiver<bool>) -> Result<(), StoreError> {
    loop {
        let (counters, before_ms) = (Arc::clone(&shared.counters), clock::unix_ms().saturating_sub(kept_ms));
        let more = shared.store.write(move |c| store::drop_older(c, &counters, before_ms)).await?;
        if !more || *stop.borrow() {
            return Ok(());
        }
        tokio::time::sleep(STEP_EVERY).await;
    }
}
