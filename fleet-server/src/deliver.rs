//! Orders to the devices that are connected here, whoever made them: this server, another that shares the database, or a
//! command beside it. In the order of the ids, from the database, so that none is missed.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use models::wire::Order;
use tokio::sync::watch;

use crate::names::DeviceId;
use crate::server::Shared;
use crate::store::{self, StoreError};
use crate::{clock, ingest};

/// How often it is looked for what others made; what this server made is sent at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// As many are read at once, each with up to 16 KiB of configuration.
const READ_AT_ONCE: u32 = 256;

/// Delivers until the server stops. A device that is away is told when it connects.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut last = None;
    loop {
        match deliver(&shared, last).await {
            Ok(newest) => last = Some(newest),
            Err(error) => {
                log::error!("looking for new orders: {}; devices get them when they connect", chain(&error));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shared.ordered.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Sends what was made after the order `last`, and gives the newest; at first there is nothing to send.
async fn deliver(shared: &Shared, last: Option<u64>) -> Result<u64, StoreError> {
    let Some(mut last) = last else { return shared.store.read(store::newest_order).await };
    loop {
        let read = move |c: &_| store::orders_after(c, last, READ_AT_ONCE, clock::unix_ms());
        let rows = shared.store.read(read).await?;
        let is_all = rows.len() < READ_AT_ONCE as usize;
        for row in rows {
            last = row.id;
            let Ok(device) = DeviceId::parse(&row.device) else { continue };
            if shared.hub.is_online(&row.device)
                && let Some(message) =
                    ingest::signed(shared, &device, &Order { id: row.id, errand: row.errand })
            {
                shared.hub.send(&device, &message);
            }
        }
        if is_all {
            return Ok(last);
        }
    }
}
