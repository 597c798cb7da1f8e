//! Alerts: found, looked at, and worked on.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use models::policy::Severity;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::access::Actor;
use super::error::ApiError;
use super::views::{AlertPage, AlertView, CommentView, FacetsView};
use super::{Answer, body_of, limit_of, query_of};
use crate::hub::Event;
use crate::names::UserName;
use crate::server::Shared;
use crate::store::{self, AlertFilter, BULK_MAX, Page, Work, WorkState, Worked};
use crate::{access, clock};

/// The longest comment, in characters.
const COMMENT_MAX: usize = 4000;

/// Which alerts, and which part of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertsQuery {
    after: Option<u64>,
    before: Option<u64>,
    limit: Option<u32>,
    device: Option<String>,
    group: Option<String>,
    program: Option<String>,
    technique: Option<String>,
    severity: Option<String>,
    state: Option<String>,
    assignee: Option<String>,
    incident: Option<u64>,
    since: Option<u64>,
    until: Option<u64>,
    q: Option<String>,
    suppressed: Option<bool>,
}

impl AlertsQuery {
    fn read(query: Result<Query<Self>, QueryRejection>) -> Result<(AlertFilter, Page, u32), ApiError> {
        let query = query_of(query)?;
        let severity = |word: &String| {
            Severity::from_word(word)
                .ok_or_else(|| ApiError::bad_request("a severity is MEDIUM, HIGH or CRITICAL"))
        };
        let page = match (query.after, query.before) {
            (None, None) => Page::Newest,
            (Some(id), None) => Page::After(id),
            (None, Some(id)) => Page::Before(id),
            (Some(_), Some(_)) => return Err(ApiError::bad_request("give `after` or `before`, not both")),
        };
        let filter = AlertFilter {
            severity: query.severity.as_ref().map(severity).transpose()?,
            state: query.state.as_deref().map(state_of).transpose()?,
            device: query.device,
            group: query.group,
            program: query.program,
            technique: query.technique,
            assignee: query.assignee,
            incident: query.incident,
            since_ms: query.since,
            until_ms: query.until,
            words: query.q,
            suppressed: query.suppressed.unwrap_or(false),
        };
        Ok((filter, page, limit_of(query.limit)))
    }
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<AlertsQuery>, QueryRejection>,
) -> Answer {
    let (filter, page, limit) = AlertsQuery::read(query)?;
    let alerts = shared.store.search(move |c| store::find_alerts(c, &filter, page, limit)).await?;
    let given = match page {
        Page::After(id) => id,
        Page::Newest | Page::Before(_) => 0,
    };
    let views: Vec<_> = alerts.iter().map(AlertView::from).collect();
    Ok(Json(json!({
        "alerts": views,
        "next_after": alerts.last().map_or(given, |alert| alert.id),
        "next_before": alerts.first().map(|alert| alert.id),
    })))
}

pub(super) async fn facets(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<AlertsQuery>, QueryRejection>,
) -> Answer {
    let (filter, _, _) = AlertsQuery::read(query)?;
    let facets = shared.store.search(move |c| store::facets(c, &filter)).await?;
    Ok(Json(json!(FacetsView::from(&facets))))
}

pub(super) async fn one(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let id = id_of(&id)?;
    let found = shared.store.read(move |c| {
        let Some(alert) = store::alert(c, id)? else { return Ok(None) };
        Ok(Some((store::rarity(c, &alert.alert)?, store::comments(c, id)?, alert)))
    });
    let (rarity, comments, alert) = found.await?.ok_or_else(|| ApiError::not_found("alert"))?;
    Ok(Json(json!(AlertPage {
        alert: AlertView::from(&alert),
        rarity: rarity.into(),
        comments: comments.iter().map(CommentView::from).collect(),
    })))
}

/// What is to be changed. A field that is missing stays; `"assignee": null` is nobody.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkRequest {
    state: Option<String>,
    #[serde(default, deserialize_with = "given")]
    assignee: Option<Option<String>>,
    comment: Option<String>,
}

/// Tells a field that is null from one that is missing.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(from).map(Some)
}

impl WorkRequest {
    pub(super) fn read(self) -> Result<Work, ApiError> {
        if self.state.is_none() && self.assignee.is_none() && self.comment.is_none() {
            return Err(ApiError::bad_request("give state, assignee or comment"));
        }
        if let Some(Some(name)) = &self.assignee
            && name != access::OWNER
        {
            UserName::parse(name).map_err(|error| ApiError::bad_request(error.to_string()))?;
        }
        if let Some(comment) = &self.comment
            && (comment.trim().is_empty() || comment.chars().count() > COMMENT_MAX)
        {
            return Err(ApiError::bad_request(format!("a comment is 1 to {COMMENT_MAX} characters")));
        }
        Ok(Work {
            state: self.state.as_deref().map(state_of).transpose()?,
            assignee: self.assignee,
            comment: self.comment,
        })
    }
}

pub(super) async fn work_on_one(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(id): Path<String>,
    body: Result<Json<WorkRequest>, JsonRejection>,
) -> Answer {
    work_on(&shared, &actor, vec![id_of(&id)?], body_of(body)?.read()?).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkRequest {
    ids: Vec<u64>,
    state: Option<String>,
    #[serde(default, deserialize_with = "given")]
    assignee: Option<Option<String>>,
    comment: Option<String>,
}

pub(super) async fn work_on_many(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    body: Result<Json<BulkRequest>, JsonRejection>,
) -> Answer {
    let BulkRequest { mut ids, state, assignee, comment } = body_of(body)?;
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
            Ok(Json(json!({ "changed": ids.len() })))
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

pub(super) fn id_of(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("an id is a number"))
}

pub(super) fn state_of(text: &str) -> Result<WorkState, ApiError> {
    WorkState::parse(text)
        .ok_or_else(|| ApiError::bad_request("a state is new, acknowledged, resolved or false_positive"))
}
