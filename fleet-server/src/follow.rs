//! What any server that shares the database stored, told on this one: in the order of the ids, from the database, so that
//! whoever listens here misses nothing that came there.

use std::sync::Arc;
use std::time::Duration;

use models::chain::chain;
use tokio::sync::watch;

use crate::hub::Event;
use crate::server::Shared;
use crate::store::{self, AlertFilter, Page, StoreError};

/// How often it is looked for what others stored; what this server stored is told at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// As many as are told at once; the rest with the next look.
const TOLD_AT_ONCE: u32 = 1000;

/// How often what people decided elsewhere is read again, and what waited for a training is looked for.
const RELOAD_EVERY: u32 = 5;

struct Follower {
    shared: Arc<Shared>,
    alert: u64,
    event: u64,
}

/// Tells until the server stops.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let (alert, event) = loop {
        let newest = shared.store.read(|c| Ok((store::newest_alert(c)?, store::newest_event(c)?)));
        match newest.await {
            Ok(newest) => break newest,
            Err(error) => log::error!("looking for the newest alert: {}", chain(&error)),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    };
    let mut follower = Follower { shared, alert, event };
    let mut looks = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => looks += 1,
            () = follower.shared.stored.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let told = follower.tell().await;
        let reloaded = if looks >= RELOAD_EVERY {
            looks = 0;
            follower.reload().await
        } else {
            Ok(())
        };
        if let Err(error) = told.and(reloaded) {
            log::error!("following the other servers: {}", chain(&error));
        }
    }
}

impl Follower {
    async fn tell(&mut self) -> Result<(), StoreError> {
        let (alert, event) = (self.alert, self.event);
        let filter = AlertFilter { suppressed: true, ..AlertFilter::default() };
        let query = move |c: &_| {
            let alerts = store::find_alerts(c, &filter, Page::After(alert), TOLD_AT_ONCE)?;
            Ok((alerts, store::events(c, Some(event), TOLD_AT_ONCE, None)?))
        };
        let (alerts, events) = self.shared.store.read(query).await?;
        for alert in alerts {
            self.alert = alert.id;
            self.shared.hub.tell(Event::Alert(Arc::new(alert)));
        }
        for event in events {
            self.event = event.id;
            self.shared.hub.tell(Event::Agent(Arc::new(event)));
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), StoreError> {
        self.shared.reload_standing().await?;
        crate::server::train_what_waited(&self.shared).await
    }
}
