//! HTTPS for people and enrolling devices: the API, the live stream and the dashboard.

mod access;
mod admin_views;
mod alerts;
mod answers;
mod baselines;
mod captures;
mod channels;
mod devices;
mod enrolment;
mod error;
mod extract;
mod files;
mod incidents;
mod live;
mod openapi;
mod order_views;
mod orders;
mod pages;
mod rates;
mod rollout_views;
mod rollouts;
mod sign_in;
mod stream;
mod suppressions;
mod system;
mod updates;
mod users;
mod views;
mod words;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Role;
use crate::counters::Counter;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store::{StoredAlert, StoredEvent};

use openapi::Needs;

pub use error::ApiError;
pub use extract::read as read_body;
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
    let Parts { viewer, analyst, admin, by_key, by_certificate, by_cookie, open } = Parts::new();
    let guarded = Router::from(viewer)
        .route_layer(least(Role::Viewer))
        .merge(Router::from(analyst).route_layer(least(Role::Analyst)))
        .merge(Router::from(admin).route_layer(least(Role::Admin)))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), access::authenticate));
    let watched = Router::from(by_key).merge(Router::from(by_certificate)).merge(Router::from(by_cookie));
    let limited = middleware::from_fn_with_state(Arc::clone(&shared), access::limit_failures);
    let api = guarded
        .merge(watched.route_layer(limited))
        .merge(Router::from(open))
        .route("/openapi.json", get(described));
    Router::new()
        .nest("/api/v1", api)
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

/// The API's operations, by who may use them.
struct Parts {
    viewer: OpenApiRouter<Arc<Shared>>,
    analyst: OpenApiRouter<Arc<Shared>>,
    admin: OpenApiRouter<Arc<Shared>>,
    by_key: OpenApiRouter<Arc<Shared>>,
    by_certificate: OpenApiRouter<Arc<Shared>>,
    by_cookie: OpenApiRouter<Arc<Shared>>,
    open: OpenApiRouter<Arc<Shared>>,
}

impl Parts {
    fn new() -> Self {
        let viewer = OpenApiRouter::default()
            .routes(routes!(alerts::list))
            .routes(routes!(alerts::facets))
            .routes(routes!(alerts::one))
            .routes(routes!(incidents::list))
            .routes(routes!(incidents::one))
            .routes(routes!(suppressions::list))
            .routes(routes!(suppressions::preview))
            .routes(routes!(devices::events))
            .routes(routes!(devices::list))
            .routes(routes!(devices::one))
            .routes(routes!(orders::list))
            .routes(routes!(orders::one))
            .routes(routes!(orders::configurations))
            .routes(routes!(orders::preview))
            .routes(routes!(baselines::training))
            .routes(routes!(baselines::list))
            .routes(routes!(rollouts::list))
            .routes(routes!(rollouts::one))
            .routes(routes!(updates::builds))
            .routes(routes!(updates::list))
            .routes(routes!(updates::one))
            .routes(routes!(system::counters))
            .routes(routes!(system::metrics))
            .routes(routes!(users::me))
            .routes(routes!(sign_in::end))
            .routes(routes!(system::overview))
            .routes(routes!(stream::stream))
            .routes(routes!(stream::socket));
        let analyst = OpenApiRouter::default()
            .routes(routes!(alerts::work_on_many))
            .routes(routes!(alerts::work_on_one))
            .routes(routes!(incidents::work))
            .routes(routes!(suppressions::create))
            .routes(routes!(suppressions::remove))
            .routes(routes!(devices::release))
            .routes(routes!(orders::create))
            .routes(routes!(orders::cancel))
            .routes(routes!(captures::download, captures::remove))
            .routes(routes!(baselines::train));
        let admin = OpenApiRouter::default()
            .routes(routes!(devices::change))
            .routes(routes!(devices::revoke))
            .routes(routes!(orders::configure))
            .routes(routes!(enrolment::list, enrolment::create))
            .routes(routes!(enrolment::remove))
            .routes(routes!(users::list))
            .routes(routes!(users::put, users::remove))
            .routes(routes!(users::create_token))
            .routes(routes!(users::remove_token))
            .routes(routes!(baselines::remove))
            .routes(routes!(rollouts::create))
            .routes(routes!(rollouts::work))
            .routes(routes!(rollouts::pin, rollouts::unpin))
            .routes(routes!(updates::remove_build))
            .routes(routes!(updates::create))
            .routes(routes!(updates::work))
            .routes(routes!(channels::list, channels::create))
            .routes(routes!(channels::remove))
            .routes(routes!(channels::test))
            .routes(routes!(system::audit));
        let by_key =
            OpenApiRouter::default().routes(routes!(enrolment::enroll)).routes(routes!(enrolment::renew));
        let by_cookie =
            OpenApiRouter::default().routes(routes!(sign_in::begin)).routes(routes!(sign_in::finish));
        let by_certificate = OpenApiRouter::default().routes(routes!(files::download));
        let open = OpenApiRouter::default()
            .routes(routes!(system::health))
            .routes(routes!(system::ca))
            .routes(routes!(sign_in::how))
            .routes(routes!(system::crl));
        Self { viewer, analyst, admin, by_key, by_certificate, by_cookie, open }
    }
}

/// The API's description, OpenAPI 3.1.
#[must_use]
pub fn description() -> Value {
    let Parts { viewer, analyst, admin, by_key, by_certificate, by_cookie, open } = Parts::new();
    openapi::describe(vec![
        (viewer.into_openapi(), Needs::Role(Role::Viewer)),
        (analyst.into_openapi(), Needs::Role(Role::Analyst)),
        (admin.into_openapi(), Needs::Role(Role::Admin)),
        (by_key.into_openapi(), Needs::Key),
        (by_certificate.into_openapi(), Needs::Certificate),
        (by_cookie.into_openapi(), Needs::Key),
        (open.into_openapi(), Needs::Nothing),
    ])
}

async fn described() -> Json<Value> {
    static DESCRIPTION: LazyLock<Value> = LazyLock::new(description);
    Json(DESCRIPTION.clone())
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
    // Devices that fetch files leave room for people.
    let of_devices = Arc::new(Semaphore::new(shared.config.web_connections_max.div_ceil(2) as usize));
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
        let (tls, stop, shared, of_devices) =
            (tls.clone(), stop.clone(), Arc::clone(&shared), Arc::clone(&of_devices));
        connections.spawn(async move {
            if let Some((stream, shown)) = secured(tcp, tls).await {
                match shown.is_some().then(|| of_devices.try_acquire_owned()).transpose() {
                    Ok(_place) => connection(stream, router.layer(Extension(shown)), stop).await,
                    Err(_) => shared.counters.bump(Counter::WebOverLimit),
                }
            }
            drop(place);
        });
    }
    while connections.join_next().await.is_some() {}
}

/// TLS, and the device's certificate if one was shown.
async fn secured(tcp: TcpStream, tls: TlsAcceptor) -> Option<(TlsStream<TcpStream>, Option<files::Shown>)> {
    let stream = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(tcp)).await.ok()?.ok()?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(files::Shown::read);
    Some((stream, shown))
}

async fn connection(stream: TlsStream<TcpStream>, router: Router, mut stop: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BODY_MAX);
    let service = TowerToHyperService::new(router);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
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
