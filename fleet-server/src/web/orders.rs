//! What people ask of devices, and the configurations of groups.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::wire::{CAPTURE_MAX, CAPTURE_MIN, Errand, LOG_LEVEL_MAX_S, QUARANTINE_MAX_S, RECORD_MAX_S};
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::access::Actor;
use super::devices::must_exist;
use super::error::{ApiError, Problem};
use super::extract::{Asked, Body, OfDevice, Words, object};
use super::order_views::{
    ConfigurationList, ConfigurationPreviewView, ConfigurationView, Level, MadeConfigurationView, OrderList,
    OrderView, changes,
};
use super::{Answer, limit_of};
use crate::clock;
use crate::hub::Event;
use crate::names::{DeviceId, GroupId};
use crate::server::Shared;
use crate::store::{self, Connection, NotRelearned, StoreError};

/// For how long an order is repeated when nobody says, in seconds.
const EXPIRES_S: u64 = 86_400;

/// The longest time for which it may be.
const EXPIRES_MAX_S: u64 = 30 * 86_400;

/// The largest size of a capture when nobody says, in bytes.
const CAPTURE_BYTES: u32 = 4 << 20;

/// What a device is to do.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ErrandRequest {
    /// To tell how it is.
    Doctor {},
    /// To log from this level on, for a time.
    LogLevel {
        level: Level,
        #[schema(minimum = 1, maximum = 86_400)]
        for_s: u32,
    },
    /// To tell what runs, and how it was judged last; the answer is JSON.
    Processes {},
    /// To tell how one process was judged lately: its last scores, and the last verdict taken apart; the answer is JSON.
    Process { pid: u32 },
    /// To forget what it learned of a program.
    Relearn { program_key: String },
    /// To reach its fleet only, for a time; a device whose file does not allow it refuses.
    Quarantine {
        #[schema(minimum = 1, maximum = 2_592_000)]
        for_s: u32,
    },
    /// To run its package's program again.
    EndUpdate {},
    /// To reach everything again.
    EndQuarantine {},
    /// To write down everything that it judges, and to send that.
    Record {
        #[schema(minimum = 1, maximum = 3600)]
        for_s: u32,
        /// The file's largest size: 4 MiB by default.
        #[schema(minimum = 65_536, maximum = 8_388_608)]
        bytes_max: Option<u32>,
    },
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    #[serde(deserialize_with = "object")]
    order: ErrandRequest,
    /// For how long it is repeated until the device answers: a day by default.
    #[schema(minimum = 1, maximum = 2_592_000)]
    expires_in_s: Option<u64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// What is older than this.
    before: Option<u64>,
    /// At most so many: 100 by default, 1000 at most.
    limit: Option<u32>,
}

/// What a device was asked to do, the newest first.
#[utoipa::path(get, path = "/devices/{id}/orders", tag = "orders", params(("id" = DeviceId, Path), PageQuery), responses((status = 200, description = "Done.", body = OrderList)))]
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    OfDevice(device): OfDevice,
    Asked(query): Asked<PageQuery>,
) -> Answer {
    let limit = limit_of(query.limit);
    let rows = shared.store.read(move |c| store::orders(c, &device, query.before, limit)).await?;
    let next_before = (rows.len() == limit as usize).then(|| rows.last().map(|row| row.id)).flatten();
    let now_ms = clock::unix_ms();
    let orders = rows.iter().map(|row| OrderView::new(row, now_ms)).collect();
    Ok(Json(json!(OrderList { orders, next_before })))
}

/// One order, with what the device said.
#[utoipa::path(get, path = "/devices/{id}/orders/{order}", tag = "orders", params(("id" = DeviceId, Path), ("order" = u64, Path)), responses((status = 200, description = "Done.", body = OrderView)))]
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Words((device, order)): Words<(DeviceId, u64)>,
) -> Answer {
    let row = shared.store.read(move |c| store::order(c, &device, order)).await?;
    let row = row.ok_or_else(|| ApiError::not_found("order"))?;
    Ok(Json(json!(OrderView::new(&row, clock::unix_ms()))))
}

/// Asks a device to do something; the order says what came of it.
#[utoipa::path(post, path = "/devices/{id}/orders", tag = "orders", request_body = OrderRequest, params(("id" = DeviceId, Path)), responses((status = 202, description = "Asked for.", body = OrderView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    OfDevice(device): OfDevice,
    Body(body): Body<OrderRequest>,
) -> Result<Response, ApiError> {
    let expires_in_s = body.expires_in_s.unwrap_or(EXPIRES_S);
    if !(1..=EXPIRES_MAX_S).contains(&expires_in_s) {
        return Err(ApiError::bad_request(format!("`expires_in_s` is from 1 to {EXPIRES_MAX_S}")));
    }
    must_exist(&shared, &device).await?;
    let now_ms = clock::unix_ms();
    let expires_ms = now_ms + expires_in_s * 1000;
    let (owner, by) = (device.clone(), actor.who.clone());
    let full = || {
        ApiError::busy("too many orders wait", "wait until the device has answered some, or take some back")
    };
    let id = match body.order {
        ErrandRequest::Doctor {} => put(&shared, &actor, owner, "doctor", Errand::Doctor, expires_ms).await?,
        ErrandRequest::Processes {} => {
            put(&shared, &actor, owner, "processes", Errand::Processes, expires_ms).await?
        }
        ErrandRequest::Process { pid } => {
            let told = format!("process {pid}");
            put(&shared, &actor, owner, &told, Errand::Process { pid }, expires_ms).await?
        }
        ErrandRequest::Quarantine { for_s } => {
            within("for_s", for_s, 1..=QUARANTINE_MAX_S)?;
            let told = format!("quarantine for {for_s} s");
            put(&shared, &actor, owner, &told, Errand::Quarantine { for_s }, expires_ms).await?
        }
        ErrandRequest::EndUpdate {} => {
            put(&shared, &actor, owner, "end_update", Errand::EndUpdate, expires_ms).await?
        }
        ErrandRequest::EndQuarantine {} => {
            put(&shared, &actor, owner, "end_quarantine", Errand::EndQuarantine, expires_ms).await?
        }
        ErrandRequest::Record { for_s, bytes_max } => {
            within("for_s", for_s, 1..=RECORD_MAX_S)?;
            let bytes_max = bytes_max.unwrap_or(CAPTURE_BYTES);
            within("bytes_max", bytes_max, CAPTURE_MIN..=CAPTURE_MAX)?;
            let told = format!("record for {for_s} s");
            put(&shared, &actor, owner, &told, Errand::Record { for_s, bytes_max }, expires_ms).await?
        }
        ErrandRequest::LogLevel { level, for_s } => {
            within("for_s", for_s, 1..=LOG_LEVEL_MAX_S)?;
            let errand = Errand::LogLevel { level: level.into(), for_s };
            put(&shared, &actor, owner, "log_level", errand, expires_ms).await?
        }
        ErrandRequest::Relearn { program_key } => {
            let audit =
                actor.audit(&shared, "device.order", device.as_str(), format!("relearn {program_key}"));
            let job =
                move |c: &Connection| store::put_relearn(c, &owner, &program_key, &by, now_ms, expires_ms);
            audit.write(&shared, job).await?.map_err(not_relearned)?
        }
    };
    let id = id.ok_or_else(full)?;
    log::warn!("device {device} is given order {id} by {}", actor.who);
    shared.ordered.notify_one();
    shared.hub.tell(Event::Device(device.clone()));
    let row = shared.store.read(move |c| store::order(c, &device, id)).await?;
    let row = row.ok_or_else(|| ApiError::not_found("order"))?;
    Ok((StatusCode::ACCEPTED, Json(json!(OrderView::new(&row, now_ms)))).into_response())
}

fn within(name: &str, value: u32, range: RangeInclusive<u32>) -> Result<(), ApiError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("`{name}` is from {} to {}", range.start(), range.end())))
}

async fn put(
    shared: &Shared,
    actor: &Actor,
    device: DeviceId,
    told: &str,
    errand: Errand,
    expires_ms: u64,
) -> Result<Option<u64>, StoreError> {
    let audit = actor.audit(shared, "device.order", device.as_str(), told);
    let (by, now_ms) = (actor.who.clone(), clock::unix_ms());
    audit.write(shared, move |c| store::put_order(c, &device, &errand, &by, now_ms, Some(expires_ms))).await
}

fn not_relearned(why: NotRelearned) -> ApiError {
    match why {
        NotRelearned::Unknown => ApiError::not_found("program on this device"),
        NotRelearned::OfMany => {
            let public =
                "the program's baseline is one of many devices, which this one would be offered again";
            let hint = "roll out another baseline, or pin the program on this device first";
            ApiError::new(StatusCode::CONFLICT, "of_many", public, hint)
        }
    }
}

/// Takes back an order that waits. The device may have it already: then it is carried out, and nobody is told.
#[utoipa::path(delete, path = "/devices/{id}/orders/{order}", tag = "orders", params(("id" = DeviceId, Path), ("order" = u64, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn cancel(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words((device, order)): Words<(DeviceId, u64)>,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "device.order_cancel", device.as_str(), order.to_string());
    if !audit.write(&shared, move |c| store::cancel_order(c, &device, order)).await? {
        return Err(ApiError::not_found("order that waits"));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A group's configuration: its versions, the newest first, and how far the devices are.
#[utoipa::path(get, path = "/groups/{group}/configurations", tag = "orders", params(("group" = GroupId, Path), PageQuery), responses((status = 200, description = "Done.", body = ConfigurationList)))]
pub(super) async fn configurations(
    State(shared): State<Arc<Shared>>,
    Words(group): Words<GroupId>,
    Asked(query): Asked<PageQuery>,
) -> Answer {
    let limit = limit_of(query.limit);
    let read = move |c: &_| {
        // One more: the last is told against the one before it.
        let rows = store::configurations(c, &group, query.before, limit + 1)?;
        let newest = store::configurations(c, &group, None, 1)?.pop().map_or(0, |row| row.version);
        Ok((rows, store::spread(c, &group, newest)?))
    };
    let (rows, spread) = shared.store.search(read).await?;
    let before = rows.iter().skip(1).map(|row| &*row.text).chain([""]);
    let versions: Vec<_> = rows.iter().zip(before).take(limit as usize).collect();
    let next_before = (rows.len() > limit as usize).then(|| versions.last().map(|(row, _)| row.version));
    let versions = versions.into_iter().map(|(row, before)| ConfigurationView::new(row, before)).collect();
    let list = ConfigurationList { versions, next_before: next_before.flatten(), spread: spread.into() };
    Ok(Json(json!(list)))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigurationText {
    /// TOML, as in the agent's file; empty when the devices' own files alone are to count.
    #[schema(max_length = 16_384)]
    text: String,
}

/// What a configuration would change.
#[utoipa::path(post, path = "/groups/{group}/configurations/preview", tag = "orders", request_body = ConfigurationText, params(("group" = GroupId, Path)), responses((status = 200, description = "Done.", body = ConfigurationPreviewView)))]
pub(super) async fn preview(
    State(shared): State<Arc<Shared>>,
    Words(group): Words<GroupId>,
    Body(body): Body<ConfigurationText>,
) -> Answer {
    crate::configuration::check(&body.text).map_err(ApiError::unprocessable)?;
    let read = move |c: &_| {
        let newest = store::configurations(c, &group, None, 1)?.pop();
        Ok((newest.map(|row| row.text).unwrap_or_default(), store::spread(c, &group, 0)?.devices))
    };
    let (before, devices) = shared.store.search(read).await?;
    Ok(Json(json!(ConfigurationPreviewView { changes: changes(&before, &body.text), devices })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigurationRequest {
    /// TOML, as in the agent's file; empty when the devices' own files alone are to count.
    #[schema(max_length = 16_384)]
    text: String,
    /// The newest version that was seen: when there is a newer one nothing is changed.
    over: Option<u64>,
}

/// Gives a group a configuration; every device of it is asked to use it, and others when they come into the group.
#[utoipa::path(post, path = "/groups/{group}/configurations", tag = "orders", request_body = ConfigurationRequest, params(("group" = GroupId, Path)), responses((status = 201, description = "Made.", body = MadeConfigurationView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn configure(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words(group): Words<GroupId>,
    Body(body): Body<ConfigurationRequest>,
) -> Result<Response, ApiError> {
    let ConfigurationRequest { text, over } = body;
    crate::configuration::check(&text).map_err(ApiError::unprocessable)?;
    let (of, by) = (group.clone(), actor.who.clone());
    let told = format!("{} bytes", text.len());
    let audit = actor.audit(&shared, "group.configure", group.as_str(), told);
    let job = move |c: &Connection| match over {
        Some(over) => store::put_configuration_over(c, &of, over, &text, &by, clock::unix_ms()),
        None => store::put_configuration(c, &of, &text, &by, clock::unix_ms()).map(Some),
    };
    let Some(version) = audit.write(&shared, job).await? else {
        let public = "somebody else changed the configuration meanwhile";
        return Err(ApiError::new(StatusCode::CONFLICT, "changed", public, "read it again, and change that"));
    };
    log::warn!("group {group} is given configuration {version} by {}", actor.who);
    shared.ordered.notify_one();
    Ok((StatusCode::CREATED, Json(MadeConfigurationView { version })).into_response())
}
