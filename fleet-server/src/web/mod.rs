//! HTTPS for people and enrolling devices: the API, the live stream and the dashboard.

mod access;
mod admin_views;
mod alerts;
mod baselines;
mod channels;
mod devices;
mod enrolment;
mod error;
mod incidents;
mod pages;
mod rates;
mod stream;
mod suppressions;
mod system;
mod users;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, patch, post, put};
use axum::{Extension, Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::access::Role;
use crate::counters::Counter;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store::{StoredAlert, StoredEvent};

pub use error::ApiError;
pub use rates::Rates;

/// For the TLS handshake, and for the head of each request: a browser that is silent longer is disconnected.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest body anyone may send.
const BODY_MAX: usize = 64 * 1024;

/// Everything the dashboard needs comes from this server; nothing inline runs, nothing may frame it.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                   base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What most handlers give.
type Answer = Result<Json<Value>, ApiError>;

/// The whole web interface.
pub fn router(shared: Arc<Shared>) -> Router {
    let least = |role| middleware::from_fn_with_state((Arc::clone(&shared), role), access::require);
    let viewer = Router::new()
        .route("/alerts", get(alerts::list))
        .route("/alerts/facets", get(alerts::facets))
        .route("/alerts/{id}", get(alerts::one))
        .route("/incidents", get(incidents::list))
        .route("/incidents/{id}", get(incidents::one))
        .route("/suppressions", get(suppressions::list))
        .route("/suppressions/preview", post(suppressions::preview))
        .route("/events", get(devices::events))
        .route("/devices", get(devices::list))
        .route("/devices/{id}", get(devices::one))
        .route("/training", get(baselines::list))
        .route("/counters", get(system::counters))
        .route("/metrics", get(system::metrics))
        .route("/me", get(users::me))
        .route("/overview", get(system::overview))
        .route("/stream", get(stream::stream))
        .route_layer(least(Role::Viewer));
    let analyst = Router::new()
        .route("/alerts", patch(alerts::work_on_many))
        .route("/alerts/{id}", patch(alerts::work_on_one))
        .route("/incidents/{id}", patch(incidents::work))
        .route("/suppressions", post(suppressions::create))
        .route("/suppressions/{id}", delete(suppressions::remove))
        .route("/devices/{id}/release", post(devices::release))
        .route("/training", post(baselines::train))
        .route_layer(least(Role::Analyst));
    let admin = Router::new()
        .route("/devices/{id}", patch(devices::change))
        .route("/devices/{id}/revoke", post(devices::revoke))
        .route("/tokens", get(enrolment::list).post(enrolment::create))
        .route("/tokens/{id}", delete(enrolment::remove))
        .route("/users", get(users::list))
        .route("/users/{name}", put(users::put).delete(users::remove))
        .route("/users/{name}/tokens", post(users::create_token))
        .route("/users/{name}/tokens/{id}", delete(users::remove_token))
        .route("/channels", get(channels::list).post(channels::create))
        .route("/channels/{id}", delete(channels::remove))
        .route("/channels/{id}/test", post(channels::test))
        .route("/audit", get(system::audit))
        .route_layer(least(Role::Admin));
    let guarded = viewer
        .merge(analyst)
        .merge(admin)
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), access::authenticate));
    let by_key = Router::new()
        .route("/enroll", post(enrolment::enroll))
        .route("/renew", post(enrolment::renew))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), access::limit_failures));
    let open = Router::new().route("/health", get(system::health)).route("/ca.pem", get(system::ca));
    Router::new()
        .nest("/api/v1", guarded.merge(by_key).merge(open))
        .merge(pages::router())
        .fallback(|| async { ApiError::not_found("page") })
        .method_not_allowed_fallback(|| async {
            let hint = "see the API's documentation";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method", hint)
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(add_headers))
        .with_state(shared)
}

/// An alert as the API gives it in lists, for those who listen elsewhere.
pub(crate) fn alert_json(alert: &StoredAlert) -> Vec<u8> {
    json(&views::AlertView::from(alert))
}

/// The same of an event.
pub(crate) fn event_json(event: &StoredEvent) -> Vec<u8> {
    json(&views::EventView::from(event))
}

fn json(view: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(view).expect("a view has a JSON form")
}

/// Rows of one answer: 100 unless asked for otherwise, 1000 at most.
fn limit_of(asked: Option<u32>) -> u32 {
    asked.unwrap_or(100).clamp(1, 1000)
}

/// What stands behind the `?`, or what is wrong with it.
fn query_of<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query.map(|Query(query)| query).map_err(|error| ApiError::bad_request(error.body_text()))
}

/// A request's JSON, or what is wrong with it.
fn body_of<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    body.map(|Json(body)| body).map_err(|error| ApiError::bad_request(error.body_text()))
}

/// A device's name in a request.
fn device_of(text: &str) -> Result<DeviceId, ApiError> {
    DeviceId::parse(text).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// Takes connections until `stop` says true, then lets open requests end.
pub async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: TlsAcceptor,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(shared.config.web_connections_max as usize));
    let router = router(Arc::clone(&shared));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: wait for connections to end instead of spinning.
                log::warn!("accepting a web connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            shared.counters.bump(Counter::WebOverLimit);
            continue;
        };
        let router = router.clone().layer(Extension(access::Peer(peer.ip())));
        let served = connection(tcp, tls.clone(), router, stop.clone());
        connections.spawn(async move {
            served.await;
            drop(place);
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(tcp: TcpStream, tls: TlsAcceptor, router: Router, mut stop: watch::Receiver<bool>) {
    let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(tcp)).await else { return };
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BODY_MAX);
    let service = TowerToHyperService::new(router);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        result = served.as_mut() => Some(result),
        _ = stop.wait_for(|stop| *stop) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        log::debug!("a web connection ended: {error}");
    }
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers: &mut HeaderMap = response.headers_mut();
    let mut add = |name: HeaderName, value| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    add(header::CONTENT_SECURITY_POLICY, CSP);
    add(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    add(header::REFERRER_POLICY, "no-referrer");
    add(header::CACHE_CONTROL, "no-store");
    add(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    response
}
