//! HTTPS for people and enrolling devices: the API, the live stream and one dashboard page.

mod api;
mod error;
mod stream;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::counters::Counter;
use crate::server::Shared;

pub use error::ApiError;

/// For the TLS handshake, and for the head of each request: a browser that is silent longer is disconnected.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest body anyone may send.
const BODY_MAX: usize = 64 * 1024;

/// Everything the dashboard needs comes from this server; nothing inline runs, nothing may frame it.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                   base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The whole web interface.
pub fn router(shared: Arc<Shared>) -> Router {
    let guarded = Router::new()
        .route("/alerts", get(api::alerts))
        .route("/alerts/{id}", get(api::alert))
        .route("/events", get(api::events))
        .route("/devices", get(api::devices))
        .route("/devices/{id}/release", post(api::release))
        .route("/training", get(api::training).post(api::train))
        .route("/counters", get(api::counters))
        .route("/tickets", post(api::tickets))
        .route("/stream", get(stream::stream))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), require_token));
    let open = Router::new()
        .route("/health", get(api::health))
        .route("/ca.pem", get(api::ca))
        .route("/enroll", post(api::enroll));
    Router::new()
        .nest("/api/v1", guarded.merge(open))
        .route("/", get(|| page("text/html; charset=utf-8", include_str!("dashboard.html"))))
        .route("/dashboard.css", get(|| page("text/css; charset=utf-8", include_str!("dashboard.css"))))
        .route("/dashboard.js", get(|| page("text/javascript; charset=utf-8", include_str!("dashboard.js"))))
        .route("/icon.svg", get(|| page("image/svg+xml", include_str!("icon.svg"))))
        .fallback(|| async { ApiError::not_found("page") })
        .method_not_allowed_fallback(|| async {
            let hint = "see the API's documentation";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method", hint)
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(add_headers))
        .with_state(shared)
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
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
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
        let served = connection(tcp, tls.clone(), router.clone(), stop.clone());
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

async fn require_token(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| value.strip_prefix("Bearer "));
    if token.is_some_and(|token| shared.pki.token_is(token)) {
        return next.run(request).await;
    }
    shared.counters.bump(Counter::WebUnauthorized);
    let public = "a valid token is needed";
    let hint = "send `Authorization: Bearer <token>`; the token is in api.token in the server's state folder";
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", public, hint).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
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

async fn page(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
