//! What happened how often: in memory, saved by the store with its next commit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($(#[doc = $doc:literal] $variant:ident = $name:literal,)+) => {
        /// One thing that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $(#[doc = $doc] $variant,)+ }

        impl Counter {
            /// Every counter, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in the API and in the store.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence that says what it counts.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $doc.trim_ascii(),)+ }
            }
        }
    };
}

counters! {
    /// Connections that reached CONNACK with success.
    MqttAccepted = "mqtt_accepted",
    /// Programs that listen whose name and token were good.
    SubscribersAccepted = "subscribers_accepted",
    /// TCP connections closed at once because a limit was reached.
    MqttOverLimit = "mqtt_over_limit",
    /// TLS or CONNECT failed or took too long.
    MqttHandshakeFailed = "mqtt_handshake_failed",
    /// Good certificate, but the device is unknown, was enrolled again with another key, or was revoked.
    MqttNotEnrolled = "mqtt_not_enrolled",
    /// Connections closed because the same device connected again.
    MqttTakenOver = "mqtt_taken_over",
    /// Publishes to a topic the device may not use; each closed its connection.
    ForbiddenPublish = "forbidden_publish",
    /// Topic filters refused with 0x80.
    ForbiddenSubscribe = "forbidden_subscribe",
    /// Connections closed for breaking the protocol.
    MqttProtocolErrors = "mqtt_protocol_errors",
    /// Connections closed after one and a half times their keep-alive.
    MqttKeepAliveExpired = "mqtt_keep_alive_expired",
    /// Connections closed because their outgoing queue was full or the device did not read.
    MqttSlowClosed = "mqtt_slow_closed",
    /// Connections to a broker of others.
    BrokerConnected = "broker_connected",
    /// Connections to it that failed or ended.
    BrokerFailed = "broker_failed",
    /// Messages from it that were not taken because too many waited; devices send them again.
    BrokerOverflow = "broker_overflow",
    /// Messages to devices that it was not given because too many waited; devices get them with their next heartbeat.
    BrokerNotSent = "broker_not_sent",
    /// Numbered messages stored for the first time.
    FramesStored = "frames_stored",
    /// Numbered messages that were there already.
    FramesDuplicate = "frames_duplicate",
    /// Numbers a device no longer has: its outbox dropped them.
    FramesMissing = "frames_missing",
    /// Messages that could not be decoded or broke a rule.
    MessagesRejected = "messages_rejected",
    /// Rejected messages dropped from the table to make room.
    RejectedDropped = "rejected_dropped",
    /// Alerts dropped from the table to make room.
    AlertsDropped = "alerts_dropped",
    /// Windows that there were alerts in, dropped to make room, or because no such alert is there.
    AlarmedDropped = "alarmed_dropped",
    /// Events dropped from the table to make room.
    EventsDropped = "events_dropped",
    /// Captures dropped, oldest first, to make room or because of their age.
    CapturesDropped = "captures_dropped",
    /// Training windows dropped, oldest first, to make room.
    WindowsDropped = "windows_dropped",
    /// Training windows of a program over the per-device limit.
    ProgramsRefused = "programs_refused",
    /// Outbox epochs forgotten because a device used too many.
    EpochsForgotten = "epochs_forgotten",
    /// Commits that failed; their messages were not acknowledged.
    CommitsFailed = "commits_failed",
    /// Trainings that gave a bundle.
    TrainingsDone = "trainings_done",
    /// Trainings that failed.
    TrainingsFailed = "trainings_failed",
    /// Trainings put off because the queue was full.
    TrainingsDeferred = "trainings_deferred",
    /// Rollouts that came to their end.
    RolloutsDone = "rollouts_done",
    /// Rollouts that were taken back, by a guard or a person.
    RolloutsRolledBack = "rollouts_rolled_back",
    /// Devices enrolled with a token.
    Enrolled = "enrolled",
    /// Enrolments refused.
    EnrolRefused = "enrol_refused",
    /// Certificates renewed.
    Renewed = "renewed",
    /// Renewals refused.
    RenewRefused = "renew_refused",
    /// Entries of the audit log dropped to make room.
    AuditDropped = "audit_dropped",
    /// Alerts that a notification channel was told.
    NoticesDelivered = "notices_delivered",
    /// Posts to a notification channel that failed and are tried again.
    NoticesFailed = "notices_failed",
    /// Alerts that a notification channel was not told: too many waited, or one too long.
    NoticesDropped = "notices_dropped",
    /// Requests without a good token.
    WebUnauthorized = "web_unauthorized",
    /// Requests of someone who may not do that.
    WebForbidden = "web_forbidden",
    /// Requests beyond a client's rate.
    WebRateLimited = "web_rate_limited",
    /// Web connections closed at once because the limit was reached.
    WebOverLimit = "web_over_limit",
    /// Certificates of devices that had more than 64 which had not ended: they will never be named as revoked.
    CertificatesForgotten = "certificates_forgotten",
    /// People who signed in at the identity provider.
    SignedIn = "signed_in",
    /// Those who came back from it and were not signed in.
    SignInRefused = "sign_in_refused",
    /// Baselines and program files, or ranges of them, that devices fetched over HTTPS.
    FilesServed = "files_served",
    /// Live events a slow reader did not get.
    StreamLagged = "stream_lagged",
}

/// All counters; they start at what the store remembers.
#[derive(Debug)]
pub struct Counters(Vec<AtomicU64>);

impl Default for Counters {
    fn default() -> Self {
        Self(Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Counters {
    /// Adds one.
    pub fn bump(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `n`.
    pub fn add(&self, counter: Counter, n: u64) {
        self.0[counter as usize].fetch_add(n, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Relaxed)
    }

    /// Names and values.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|counter| (counter.name(), self.get(*counter)))
    }
}
