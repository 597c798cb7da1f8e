//! Alerts: found, looked at, and worked on.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::access::Actor;
use super::answers::{AlertList, ChangedView};
use super::error::{ApiError, Problem};
use super::extract::{Asked, Body, Id};
use super::views::{AlertPage, AlertView, CommentView, FacetsView};
use super::words::SeverityWord;
use super::{Answer, limit_of};
use crate::clock;
use crate::hub::Event;
use crate::names::UserName;
use crate::server::Shared;
use crate::store::{self, AlertFilter, BULK_MAX, Page, Work, WorkState, Worked};

/// The longest comment, in characters.
const COMMENT_MAX: usize = 4000;

/// Which alerts, and which part of them.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AlertsQuery {
    /// The first behind this id.
    after: Option<u64>,
    /// The newest before this id.
    before: Option<u64>,
    /// At most so many: 100 by default, 1000 at most.
    limit: Option<u32>,
    device: Option<String>,
    /// Of devices that are in this group now.
    group: Option<String>,
    /// Of devices that have this tag now.
    tag: Option<String>,
    /// By its key.
    program: Option<String>,
    /// An ATT&CK technique.
    technique: Option<String>,
    /// At least so severe.
    severity: Option<SeverityWord>,
    state: Option<WorkState>,
    assignee: Option<String>,
    incident: Option<u64>,
    /// Stored at this time or later, milliseconds since 1970.
    since: Option<u64>,
    /// Stored before this time, milliseconds since 1970.
    until: Option<u64>,
    /// With these words anywhere; `*` at a word's end stands for any ending.
    q: Option<String>,
    /// Also those that a rule hides.
    suppressed: Option<bool>,
}

impl AlertsQuery {
    fn read(self) -> Result<(AlertFilter, Page, u32), ApiError> {
        let page = match (self.after, self.before) {
            (None, None) => Page::Newest,
            (Some(id), None) => Page::After(id),
            (None, Some(id)) => Page::Before(id),
            (Some(_), Some(_)) => return Err(ApiError::unprocessable("give `after` or `before`, not both")),
        };
        let filter = AlertFilter {
            severity: self.severity.map(Into::into),
            state: self.state,
            device: self.device,
            group: self.group,
            tag: self.tag,
            program: self.program,
            technique: self.technique,
            assignee: self.assignee,
            incident: self.incident,
            since_ms: self.since,
            until_ms: self.until,
            words: self.q,
            suppressed: self.suppressed.unwrap_or(false),
        };
        Ok((filter, page, limit_of(self.limit)))
    }
}

/// Alerts that fit, in ascending order of their ids.
#[utoipa::path(get, path = "/alerts", tag = "alerts", params(AlertsQuery), responses((status = 200, description = "Done.", body = AlertList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>, Asked(query): Asked<AlertsQuery>) -> Answer {
    let (filter, page, limit) = query.read()?;
    let alerts = shared.store.search(move |c| store::find_alerts(c, &filter, page, limit)).await?;
    let given = match page {
        Page::After(id) => id,
        Page::Newest | Page::Before(_) => 0,
    };
    let views: Vec<_> = alerts.iter().map(AlertView::from).collect();
    Ok(Json(json!(AlertList {
        alerts: views,
        next_after: alerts.last().map_or(given, |alert| alert.id),
        next_before: alerts.first().map(|alert| alert.id),
    })))
}

/// How many of the newest 10,000 alerts that fit have which severity, state, device, program and technique.
#[utoipa::path(get, path = "/alerts/facets", tag = "alerts", params(AlertsQuery), responses((status = 200, description = "Done.", body = FacetsView)))]
pub(super) async fn facets(State(shared): State<Arc<Shared>>, Asked(query): Asked<AlertsQuery>) -> Answer {
    let (filter, _, _) = query.read()?;
    let facets = shared.store.search(move |c| store::facets(c, &filter)).await?;
    Ok(Json(json!(FacetsView::from(&facets))))
}

/// One alert, with comments and how rare it is over the fleet.
#[utoipa::path(get, path = "/alerts/{id}", tag = "alerts", params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = AlertPage)))]
pub(super) async fn one(State(shared): State<Arc<Shared>>, Id(id): Id) -> Answer {
    let found = shared.store.read(move |c| {
        let Some(alert) = store::alert(c, id)? else { return Ok(None) };
        Ok(Some((store::rarity(c, &alert.alert)?, store::comments(c, id)?, store::alarmed(c, id)?, alert)))
    });
    let (rarity, comments, window, alert) = found.await?.ok_or_else(|| ApiError::not_found("alert"))?;
    Ok(Json(json!(AlertPage {
        alert: AlertView::from(&alert),
        rarity: rarity.into(),
        window: window.into(),
        comments: comments.iter().map(CommentView::from).collect(),
    })))
}

/// What is to be changed. A field that is missing stays; `"assignee": null` is nobody.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkRequest {
    state: Option<WorkState>,
    /// Null is nobody.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<UserName>)]
    assignee: Option<Option<UserName>>,
    #[schema(min_length = 1, max_length = 4000, pattern = r"\S")]
    comment: Option<String>,
}

/// Tells a field that is null from one that is missing.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<UserName>>, D::Error> {
    Option::<UserName>::deserialize(from).map(Some)
}

impl WorkRequest {
    pub(super) fn read(self) -> Result<Work, ApiError> {
        if self.state.is_none() && self.assignee.is_none() && self.comment.is_none() {
            return Err(ApiError::unprocessable("give state, assignee or comment"));
        }
        if let Some(comment) = &self.comment
            && (comment.trim().is_empty() || comment.chars().count() > COMMENT_MAX)
        {
            return Err(ApiError::bad_request(format!("a comment is 1 to {COMMENT_MAX} characters")));
        }
        Ok(Work {
            state: self.state,
            assignee: self.assignee.map(|name| name.map(|name| name.to_string())),
            comment: self.comment,
        })
    }
}

/// Changes the state, the assignee or both, or adds a comment.
#[utoipa::path(patch, path = "/alerts/{id}", tag = "alerts", request_body = WorkRequest, params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = ChangedView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn work_on_one(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
    Body(body): Body<WorkRequest>,
) -> Answer {
    work_on(&shared, &actor, vec![id], body.read()?).await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkRequest {
    #[schema(min_items = 1, max_items = 1000)]
    ids: Vec<u64>,
    state: Option<WorkState>,
    /// Null is nobody.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<UserName>)]
    assignee: Option<Option<UserName>>,
    #[schema(min_length = 1, max_length = 4000, pattern = r"\S")]
    comment: Option<String>,
}

/// The same for many alerts: all are changed or none.
#[utoipa::path(patch, path = "/alerts", tag = "alerts", request_body = BulkRequest, responses((status = 200, description = "Done.", body = ChangedView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn work_on_many(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(body): Body<BulkRequest>,
) -> Answer {
    let BulkRequest { mut ids, state, assignee, comment } = body;
    ids.sort_unstable();
    ids.dedup();
    if !(1..=BULK_MAX).contains(&ids.len()) {
        return Err(ApiError::bad_request(format!("give 1 to {BULK_MAX} ids")));
    }
    work_on(&shared, &actor, ids, WorkRequest { state, assignee, comment }.read()?).await
}

async fn work_on(shared: &Shared, actor: &Actor, ids: Vec<u64>, work: Work) -> Answer {
    let target = match ids[..] {
        [id] => id.to_string(),
        _ => format!("{} alerts from {} to {}", ids.len(), ids[0], ids[ids.len() - 1]),
    };
    let audit = actor.audit(shared, "alert.work", target, told(&work));
    let who = actor.who.clone();
    let worked = audit.write(shared, move |c| store::work(c, &ids, &work, &who, clock::unix_ms()));
    answer(shared, worked.await?).await
}

/// What was changed is told to everyone who watches.
pub(super) async fn answer(shared: &Shared, worked: Worked) -> Answer {
    match worked {
        Worked::Done(ids) => {
            let wanted = ids.clone();
            let alerts = shared.store.read(move |c| {
                wanted.iter().filter_map(|id| store::alert(c, *id).transpose()).collect::<Result<Vec<_>, _>>()
            });
            for alert in alerts.await? {
                shared.hub.tell(Event::AlertChanged(Arc::new(alert)));
            }
            Ok(Json(json!(ChangedView { changed: ids.len() })))
        }
        Worked::Missing(id) => Err(ApiError::not_found(&format!("alert {id}"))),
        Worked::Full(id) => {
            let public = format!("alert {id} has as many comments as may be");
            Err(ApiError::new(StatusCode::CONFLICT, "full", public, "change its state without a comment"))
        }
    }
}

/// A change in the audit log.
pub(super) fn told(work: &Work) -> String {
    let state = work.state.map(|state| format!("state {}", state.as_str()));
    let assignee =
        work.assignee.as_ref().map(|name| format!("assignee {}", name.as_deref().unwrap_or("nobody")));
    let comment = work.comment.as_ref().map(|_| "a comment".to_owned());
    [state, assignee, comment].into_iter().flatten().collect::<Vec<_>>().join(", ")
}
